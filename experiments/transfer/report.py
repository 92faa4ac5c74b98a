"""The transfer study's numbers, page and packaged attack, from its finished jobs."""

import dataclasses
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transfer import attacks as transfer_attacks
from experiments.transfer import controls as transfer_controls
from experiments.transfer import figures as transfer_figures
from experiments.transfer import tables as transfer_tables
from experiments.transfer.architectures import FAMILY_NAMES, Family
from experiments.transfer.attacks import AttackSpec, is_first
from experiments.transfer.config import Study
from experiments.transfer.jobs import (
    ATTACK,
    CONTROL,
    LOGITS,
    SCORES,
    attack_settings,
)
from experiments.transfer.plan import CODE, Plan
from experiments.transfer.statistics import Judged, Resamples, group, loss_gap
from experiments.transfer.tables import FIRST, LEARNED, RATE, TEXT_ONLY, Found, point
from lt_mia_jax.attacks import load_attack
from lt_mia_jax.attacks.learned.storage import CARD, FILES, save_attack
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.texts import fingerprint
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import MANIFEST, read_json, write_atomic, write_json
from lt_mia_jax.provenance import cores, git_commit, versions
from lt_mia_jax.study.stages import CORPORA, is_finished

RESULTS, PAGE = "results.json", "results.md"
MOST = 4_000_000
"""Bytes of a packaged attack."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is reported."""

    markdown: str
    """The sections of the page."""
    values: dict[str, Any]
    """The numbers, as JSON values."""
    found: Found


def collect(study: Study) -> tuple[Plan, list[Judged], dict[str, AttackSpec]]:
    """Judged combinations with the scores of every finished attack, and those.

    Raises:
      InputError: nothing is finished yet, or an attack is one of other settings.
    """
    plan = study.plan()
    specs = transfer_attacks.attacks(plan, study.seed)
    logits = {}
    for name, spec in specs.items():
        directory = study.out / "attacks" / name
        # Looked for first: settings can be told only of finished combinations.
        if (directory / MANIFEST).exists() and is_finished(
            directory, attack_settings(study, spec)
        ):
            with np.load(directory / LOGITS) as found:
                logits[name] = {key: found[key] for key in found.files}
    if LEARNED not in logits:
        raise InputError(
            f"{study.out}: the attack {LEARNED} is not finished; run without "
            "--tables-only first"
        )
    judged = []
    for combination in plan.judge:
        learned = [n for n in logits if combination in specs[n].judged(plan)]
        lacking = [name for name in learned if combination.name not in logits[name]]
        if lacking:
            raise InputError(
                f"{study.out / 'attacks' / lacking[0]}: {combination.name} is not "
                "judged; run without --tables-only first"
            )
        path = study.folder(combination) / SCORES
        control = study.out / "controls" / combination.name / CONTROL
        for needed in (path, control):
            if not needed.exists():
                raise InputError(
                    f"{needed}: not there; run without --tables-only first"
                )
        with np.load(control) as found:
            text_only, permuted = found["scores"], found["permuted"]
        with np.load(path) as found:
            published = {
                key.removeprefix("score_"): found[key]
                for key in found.files
                if key.startswith("score_")
            }
            judged.append(
                Judged(
                    name=combination.name,
                    base=combination.base,
                    corpus=combination.corpus,
                    draw=combination.draw,
                    ids=found["ids"],
                    labels=found["labels"],
                    permuted=permuted,
                    scores={
                        **{name: logits[name][combination.name] for name in learned},
                        **published,
                        TEXT_ONLY: text_only,
                    },
                )
            )
    return plan, judged, {name: specs[name] for name in logits}


def _validation(study: Study, name: str) -> float:
    history = read_json(study.out / "attacks" / name / ATTACK / CARD)["history"]
    return max(history, key=lambda row: row["validation_auc"])["mean_auc"]


def families(plan: Plan) -> dict[str, Family]:
    """Of each judged base."""
    names = {c.base for c in plan.judge}
    return {base.name: base.family for base in plan.bases if base.name in names}


def usual(plan: Plan, judged: Sequence[Judged]) -> list[Judged]:
    """Combinations of the main table: fine-tuned, with the base's most usual recipe."""
    recipes = {c.name: (c.epochs, c.learning_rate, c.lora) for c in plan.judge}
    chosen = []
    for base in {j.base: None for j in judged}:
        own = [j for j in judged if j.base == base]
        every = [recipes[j.name] for j in own if recipes[j.name][0]]
        most = max(every, key=every.count)
        chosen += [j for j in own if recipes[j.name] == most]
    return chosen


def report(study: Study, *, resamples: int) -> Report:
    """Compute every number.

    Raises:
      InputError: nothing is finished yet.
    """
    plan, judged, specs = collect(study)
    main = usual(plan, judged)
    drawn = Resamples(judged, count=resamples, seed=study.seed)
    published = [n for n in main[0].scores if n not in specs and n != TEXT_ONLY]
    family_of = families(plan)
    by_family: dict[Family, list[Judged]] = {
        family: part
        for family in FAMILY_NAMES
        if (part := [j for j in main if family_of[j.base] == family])
    }
    first = [j for j in main if is_first(j)]
    groups: dict[str, list[Judged]] = {**by_family, "all": main, FIRST: first}
    if code := [j for j in main if j.corpus in CODE]:
        groups["code"] = code
    curves = {
        (label, name): found
        for label, part in groups.items()
        for name, found in group(part, _common(part), drawn, rate=RATE).items()
    }
    found = Found(
        plan=plan,
        specs=specs,
        published=published,
        judged=judged,
        main=main,
        families=by_family,
        validation={name: _validation(study, name) for name in specs},
        curves=curves,
        resamples=drawn,
    )
    sections = (
        transfer_tables.headline,
        transfer_tables.equal_gap,
        transfer_tables.strict,
        transfer_tables.baselines,
        transfer_controls.section,
        transfer_tables.ablations,
        transfer_tables.combinations,
    )
    points = {(j.name, n): point(j, n) for j in judged for n in j.scores}
    corpora = read_json(study.out / "corpora" / CORPORA)
    values = {
        "means": {
            f"{label}/{name}": {"auc": auc.mean.json, "tpr": tpr.mean.json}
            for (label, name), (auc, tpr) in curves.items()
        },
        "combinations": [
            {
                "name": j.name,
                "family": family_of[j.base],
                "members": int((j.labels == 1).sum()),
                "nonmembers": int((j.labels == 0).sum()),
                "loss_gap_nats": loss_gap(j),
                "auc": {n: _number(points[j.name, n][0]) for n in j.scores},
                "tpr_at_1_percent": {
                    n: _number(points[j.name, n][1]) for n in j.scores
                },
            }
            for j in judged
        ],
        "corpora": corpora,
        "fingerprint": fingerprint([c["fingerprint"] for c in corpora.values()])[:16],
        "study": to_dict(study),
        "command": shlex.join(["python", "-m", "experiments.transfer", *sys.argv[1:]]),
        "platform": platform.platform(),
        "cores": cores(),
        "versions": versions(),
        "commit": git_commit(),
    }
    markdown = "\n\n".join(filter(None, (section(found) for section in sections)))
    return Report(markdown=markdown, values=values, found=found)


def _common(judged: Sequence[Judged]) -> list[str]:
    return [name for name in judged[0].scores if all(name in j.scores for j in judged)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(found: Report, out: Path, docs: Path | None) -> None:
    """`results.json` into the study's folder, the page and its figures into `docs`."""
    write_json(out / RESULTS, found.values)
    if docs is None:
        return
    figures = transfer_figures.draw(found, docs)
    corpora = found.values["corpora"]
    lines = [
        f"- `{name}`: {entry['documents']:,} documents, fingerprint "
        f"`{entry['fingerprint'][:16]}`"
        for name, entry in corpora.items()
    ]
    small = (
        " Tiny models (about a million parameters) on code, technical text and "
        "speeches: figures show the mechanism, not the size of the effect on "
        "production models."
    )
    text = "\n\n".join(
        [
            "# Results of the transfer study",
            f"Made by `{found.values['command']}` on {found.values['cores']} cores, "
            f"preset {found.values['study']['preset']}, "
            f"seed {found.values['study']['seed']}, texts "
            f"`{found.values['fingerprint']}`."
            + ("" if found.values["study"]["preset"] == "paper" else small),
            *(f"![{title}]({name})" for name, title in figures.items()),
            found.markdown,
            "### Texts\n\n" + "\n".join(lines),
            "Versions: "
            + ", ".join(f"{k} {v}" for k, v in found.values["versions"].items())
            + ".",
        ]
    )
    write_atomic(docs / PAGE, text + "\n")


def package(study: Study, directory: Path, found: Report) -> None:
    """The main attack as the package ships it: small, and with a model card."""
    attack = load_attack(study.out / "attacks" / LEARNED / ATTACK)
    means = found.values["means"]
    card = {
        "name": "LT-MIA, trained on tiny transformers",
        "command": found.values["command"],
        "intended_use": "ranking texts by how likely they were in the fine-tuning data "
        "of a causal language model, given that model and the one it was tuned from; "
        "for audits of models one may audit.",
        "limits": "trained on models of about a million parameters, English technical "
        "text, code and speeches, texts of up to 128 tokens, full fine-tuning and "
        "LoRA. Random tokens, which no model predicts, are told apart less well. "
        "Scores are not calibrated: use --nonmembers for error rates.",
        "seed": study.seed,
        "combinations": [
            {
                key: entry[key]
                for key in ("name", "reference", "corpus", "fingerprint")
                if key in entry
            }
            for entry in attack.card["combinations"]
        ],
        "text_ids": attack.card["text_ids"],
        "rows": attack.card["rows"],
        "recipe": attack.card["recipe"],
        "validation_auc": attack.card["validation_auc"],
        "corpora": found.values["corpora"],
        "zero_shot": {
            key.split("/")[0]: value
            for key, value in means.items()
            if key.endswith(f"/{LEARNED}")
        },
        "versions": attack.card["versions"],
        # Of the process that trained it; earlier ones did not say.
        "cores": attack.card.get("cores"),
    }
    if directory.exists() and not (directory / MANIFEST).exists():
        raise InputError(f"{directory} is there and is no attack; choose another")
    save_attack(directory, attack.config, attack.params, card)
    size = sum((directory / name).stat().st_size for name in FILES)
    if size > MOST:
        raise InputError(f"{directory}: {size} bytes; the package takes 4 MB at most")
