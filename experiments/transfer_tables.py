"""Tables, figures and the model card of the transfer study, from its finished jobs."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transfer_attacks
import transfer_figures
from transfer_attacks import MAIN
from transfer_jobs import CORPORA, LOGITS, SCORES, Study
from transfer_plan import CODE, FAMILY_NAMES, Family, Plan
from transfer_statistics import Curve, Judged, Resamples, group, loss_gap, pooled_tpr

from lt_mia_jax.attacks import load_attack
from lt_mia_jax.attacks.storage import FILES, save_attack
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import MANIFEST, read_json, write_atomic, write_json
from lt_mia_jax.provenance import git_commit, versions

LEARNED = f"{MAIN}-0"
SHOWN = (LEARNED, "ez", "wbc", "ratio", "min_k_plus_plus", "loss")
NAMES = {
    LEARNED: "LT-MIA",
    "ez": "EZ-MIA",
    "wbc": "WBC",
    "ratio": "Ratio",
    "loss": "Loss",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
}
RESULTS, PAGE = "results.json", "results.md"
RATE, STRICT = 0.01, 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is reported."""

    markdown: str
    values: dict[str, Any]
    judged: tuple[Judged, ...]
    plan: Plan


def collect(study: Study) -> tuple[Plan, tuple[Judged, ...], tuple[str, ...]]:
    """Judged combinations with the scores of every finished attack, and their names.

    Raises:
      InputError: nothing is finished yet.
    """
    plan = study.plan()
    specs = transfer_attacks.attacks(plan, study.seed)
    logits = {}
    for name in specs:
        path = study.out / "attacks" / name / LOGITS
        if path.exists():
            with np.load(path) as found:
                logits[name] = {key: found[key] for key in found.files}
    if LEARNED not in logits:
        raise InputError(
            f"{study.out}: the attack {LEARNED} is not finished; run without "
            "--tables-only first"
        )
    judged = []
    for combination in plan.judge:
        path = study.folder(combination) / SCORES
        if not path.exists():
            raise InputError(f"{path}: not there; run without --tables-only first")
        with np.load(path) as found:
            scores = {
                key.removeprefix("score_"): found[key]
                for key in found.files
                if key.startswith("score_")
            }
            scores["text only"] = found["blind"]
            judged.append(
                Judged(
                    name=combination.name,
                    base=combination.base,
                    corpus=combination.corpus,
                    draw=combination.draw,
                    ids=found["ids"],
                    labels=found["labels"],
                    scores={
                        **{name: logits[name][combination.name] for name in logits},
                        **scores,
                    },
                )
            )
    return plan, tuple(judged), tuple(logits)


def families(plan: Plan) -> dict[str, Family]:
    """Of each judged base."""
    names = {c.base for c in plan.judge}
    return {base.name: base.family for base in plan.bases if base.name in names}


def usual(plan: Plan, judged: Sequence[Judged]) -> list[Judged]:
    """Combinations of the most frequent recipe: those of the main table."""
    recipes = {c.name: (c.epochs, c.learning_rate, c.lora) for c in plan.judge}
    every = [recipes[j.name] for j in judged]
    if len(set(every)) == 1 or plan.pretrain.steps == 1000:
        return [j for j in judged if recipes[j.name][0]]
    most = max(every, key=every.count)
    return [j for j in judged if recipes[j.name] == most]


def report(study: Study, *, resamples: int) -> Report:
    """Compute every number."""
    plan, judged, attacks = collect(study)
    main = usual(plan, judged)
    drawn = Resamples(judged, count=resamples, seed=study.seed)
    published = [n for n in main[0].scores if n not in attacks and n != "text only"]
    by_family = {
        family: [j for j in main if families(plan)[j.base] == family]
        for family in FAMILY_NAMES
    }
    by_family = {family: part for family, part in by_family.items() if part}
    curves: dict[tuple[str, str], tuple[Curve, Curve]] = {}
    for name in (*attacks, *published, "text only"):
        for family, part in by_family.items():
            curves[family, name] = group(part, name, drawn, rate=RATE)
        curves["all", name] = group(main, name, drawn, rate=RATE)
    code = [j for j in main if j.corpus in CODE]
    for name in (LEARNED, *published):
        if code:
            curves["code", name] = group(code, name, drawn, rate=RATE)
    sections = [
        _headline(plan, by_family, curves, published, drawn),
        _strict(by_family, main, published, drawn),
        _baselines(by_family, curves, published, bool(code)),
        _controls(plan, judged, main, drawn),
        _ablations(study, plan, attacks, curves),
        _combinations(plan, judged, published),
    ]
    values = {
        "means": {
            f"{group}/{name}": {"auc": auc.mean._asdict(), "tpr": tpr.mean._asdict()}
            for (group, name), (auc, tpr) in curves.items()
        },
        "combinations": [
            {
                "name": j.name,
                "family": families(plan)[j.base],
                "members": int((j.labels == 1).sum()),
                "nonmembers": int((j.labels == 0).sum()),
                "loss_gap_nats": loss_gap(j),
                "auc": {name: _point(j, name)[0] for name in j.scores},
                "tpr_at_1_percent": {name: _point(j, name)[1] for name in j.scores},
            }
            for j in judged
        ],
        "corpora": read_json(study.out / "corpora" / CORPORA),
        "versions": versions(),
        "commit": git_commit(),
    }
    return Report(
        markdown="\n\n".join(s for s in sections if s),
        values=values,
        judged=judged,
        plan=plan,
    )


def _point(judged: Judged, name: str) -> tuple[float, float]:
    from transfer_statistics import weighted_roc

    one = np.ones((1, len(judged.labels)))
    auc, tpr = weighted_roc(judged.labels, judged.scores[name], one, RATE)
    return float(auc[0]), float(tpr[0])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _label(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _headline(plan, by_family, curves, published, drawn) -> str:
    rows = []
    for family, part in by_family.items():
        auc, tpr = curves[family, LEARNED]
        best = max(published, key=lambda n: curves[family, n][0].value)
        best_tpr = max(published, key=lambda n: curves[family, n][1].value)
        rows.append(
            [
                FAMILY_NAMES[family],
                len(part),
                f"{np.mean([loss_gap(j) for j in part]):.2f}",
                auc.mean,
                f"{_label(best)} {curves[family, best][0].mean}",
                auc.less(curves[family, best][0]),
                tpr.mean,
                f"{_label(best_tpr)} {curves[family, best_tpr][1].mean}",
            ]
        )
    sentences = []
    if "transformer" in by_family:
        for family in by_family:
            if family != "transformer":
                margin = curves[family, LEARNED][0].less(
                    curves["transformer", LEARNED][0]
                )
                sentences.append(
                    f"{FAMILY_NAMES[family]} minus the unseen transformer: {margin}."
                )
    return "\n\n".join(
        [
            "## Trained on transformers, judged on everything else",
            f"The attack saw {len(plan.train)} combinations of "
            f"{len({c.base for c in plan.train})} transformers and "
            f"{len({c.corpus for c in plan.train})} corpora. Below: mean over unseen "
            "corpora and repetitions, 95 % intervals over texts and repetitions. "
            "Gap: mean loss of non-members minus members, nats a token.",
            _table(
                [
                    "judged on",
                    "combinations",
                    "gap",
                    "AUC, LT-MIA",
                    "best published score",
                    "difference",
                    "TPR at 1 % FPR, LT-MIA",
                    "best published score",
                ],
                rows,
            ),
            "AUC, " + " ".join(sentences) if sentences else "",
        ]
    )


def _strict(by_family, main, published, drawn) -> str:
    """TPR at 0.1 %, all texts of a family under one threshold."""
    rows = []
    parts = {FAMILY_NAMES[f]: part for f, part in by_family.items()} | {"all": main}
    for label, part in parts.items():
        own = pooled_tpr(part, LEARNED, drawn, rate=STRICT)
        count = sum(int((j.labels == 0).sum()) for j in part)
        if own is None:
            rows.append([label, f"{count:,}", "too few non-members", "", ""])
            continue
        found = {n: pooled_tpr(part, n, drawn, rate=STRICT) for n in published}
        best = max(published, key=lambda n: found[n].value)
        ratio = Curve(
            own.value / max(found[best].value, 1e-9),
            own.resampled / np.maximum(found[best].resampled, 1e-9),
        )
        shown = (
            f"{ratio.mean.value:.1f} [{ratio.mean.low:.1f}, {ratio.mean.high:.1f}]"
            if found[best].value > 0
            else "-"
        )
        rows.append(
            [
                label,
                f"{count:,}",
                own.mean,
                f"{_label(best)} {found[best].mean}",
                shown,
            ]
        )
    return "\n\n".join(
        [
            "### TPR at 0.1 % FPR",
            "All texts of a family under one threshold; non-members of the same corpus "
            "count once for each model that scored them.",
            _table(
                [
                    "judged on",
                    "non-members",
                    "LT-MIA",
                    "best published score",
                    "ratio",
                ],
                rows,
            ),
        ]
    )


def _baselines(by_family, curves, published, code) -> str:
    groups = [*by_family, "all", *(["code"] if code else [])]
    order = sorted(published, key=lambda n: -curves["all", n][0].value)
    rows = [
        [
            _label(name),
            *(
                f"{curves[g, name][0].value:.3f} / {curves[g, name][1].value:.3f}"
                for g in groups
            ),
        ]
        for name in (LEARNED, *order)
    ]
    heads = [FAMILY_NAMES.get(g, g) for g in groups]
    return "\n\n".join(
        [
            "### Every score",
            "Mean AUC / mean TPR at 1 % FPR, same combinations.",
            _table(["score", *heads], rows),
        ]
    )


def _controls(plan, judged, main, drawn) -> str:
    def around(part: Sequence[Judged], name: str) -> tuple[int, float, float]:
        inside, values = 0, []
        for one in part:
            auc, _ = group([one], name, drawn, rate=RATE)
            inside += auc.mean.low <= 0.5 <= auc.mean.high
            values.append(auc.value)
        return inside, min(values), max(values)

    epochs = {c.name: c.epochs for c in plan.judge}
    untouched = [j for j in judged if epochs[j.name] == 0]
    tests = [("only the text (bag of tokens, forest)", main, "text only")]
    if "columns-reference" in main[0].scores:
        tests.append(
            ("attack that sees only the reference's columns", main, "columns-reference")
        )
    if untouched:
        tests.append(("target = reference, LT-MIA", untouched, LEARNED))
    shuffled = [_permuted(j) for j in main]
    tests.append(("permuted labels, LT-MIA", shuffled, LEARNED))
    rows = []
    for label, part, name in tests:
        inside, low, high = around(part, name)
        rows.append([label, f"{inside} of {len(part)}", f"{low:.3f} to {high:.3f}"])
    return "\n\n".join(
        [
            "### Controls",
            "AUC must be 0.5: combinations whose 95 % interval holds it (of twenty, one "
            "is expected not to), and the range.",
            _table(["control", "intervals with 0.5", "AUC"], rows),
        ]
    )


def _permuted(judged: Judged) -> Judged:
    rng = np.random.default_rng(0)
    return dataclasses.replace(judged, labels=rng.permutation(judged.labels))


def _ablations(study, plan, attacks, curves) -> str:
    specs = transfer_attacks.attacks(plan, study.seed)
    titles = {
        MAIN: "Seeds of the main attack",
        "architecture": "Architecture",
        "inputs": f"Inputs (main: {_inputs(plan.classifier.standardise)})",
        "columns": "Feature columns",
        "diversity": "Combinations, at a fixed number of training texts",
        "volume": "Training texts of each combination",
    }
    parts = []
    for study_name, title in titles.items():
        own = [n for n in attacks if specs[n].study == study_name]
        if not own:
            continue
        settings = list(dict.fromkeys(specs[n].setting for n in own))
        rows = []
        for setting in settings:
            same = [n for n in own if specs[n].setting == setting]
            rows.append(_ablation_row(setting, same, curves))
        if study_name != MAIN:
            rows.append(_ablation_row("main", [LEARNED], curves))
        parts.append(
            f"**{title}**\n\n"
            + _table(["setting", "attacks", "AUC", "TPR at 1 % FPR"], rows)
        )
    return "### Ablations and scaling\n\nMean over all judged combinations.\n\n" + (
        "\n\n".join(parts)
    )


def _inputs(standardise: bool) -> str:
    return "standardised" if standardise else "as they are"


def _ablation_row(setting: str, names: Sequence[str], curves) -> list[object]:
    def mean(which: int) -> object:
        parts = [curves["all", n][which] for n in names]
        return Curve(
            float(np.mean([p.value for p in parts])),
            np.mean([p.resampled for p in parts], axis=0),
        ).mean

    return [setting.replace("_", " "), len(names), mean(0), mean(1)]


def _combinations(plan, judged, published) -> str:
    recipes = {c.name: c for c in plan.judge}
    shown = [n for n in SHOWN if n == LEARNED or n in published]
    rows = []
    for one in judged:
        recipe = recipes[one.name]
        tuned = (
            "none"
            if not recipe.epochs
            else f"{recipe.epochs} epochs, {recipe.learning_rate:g}"
            + ("" if recipe.lora is None else f", LoRA {recipe.lora.rank}")
        )
        members = int((one.labels == 1).sum())
        rows.append(
            [
                one.name,
                tuned,
                f"{members} / {len(one.labels) - members}",
                f"{loss_gap(one):.2f}",
                *("{:.3f} / {:.3f}".format(*_point(one, n)) for n in shown),
            ]
        )
    return "\n\n".join(
        [
            "### Every judged combination",
            "AUC / TPR at 1 % FPR.",
            _table(
                [
                    "combination",
                    "fine-tuning",
                    "members / non-members",
                    "gap",
                    *map(_label, shown),
                ],
                rows,
            ),
        ]
    )


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
    intro = read_json(out / "about.json") if (out / "about.json").exists() else {}
    text = "\n\n".join(
        [
            "# Results of the transfer study",
            "Made by `python experiments/transfer.py --preset tiny --docs docs`"
            + (f" {intro['machine']}" if "machine" in intro else "")
            + ". Tiny models (about a million parameters) on code, technical text and "
            "speeches: figures show the mechanism, not the size of the effect on "
            "production models.",
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
    """The main attack as the package ships it: small, and with a model card.

    Ids of its training texts are left out: the texts of this study are not those that
    a user audits, and they would outweigh the weights.
    """
    attack = load_attack(study.out / "attacks" / LEARNED)
    means = found.values["means"]
    card = {
        "name": "LT-MIA, trained on tiny transformers",
        "command": "python experiments/transfer.py --preset "
        f"{study.preset} --seed {study.seed} --package DIR",
        "intended_use": "ranking texts by how likely they were in the fine-tuning data "
        "of a causal language model, given that model and the one it was tuned from; "
        "for audits of models one may audit.",
        "limits": "trained on models of about a million parameters, English technical "
        "text, code and speeches, texts of up to 128 tokens, full fine-tuning and "
        "LoRA. Scores are not calibrated: use --nonmembers for error rates.",
        "seed": study.seed,
        "combinations": [
            {
                key: entry[key]
                for key in ("name", "reference", "corpus", "fingerprint")
                if key in entry
            }
            for entry in attack.card["combinations"]
        ],
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
    }
    if directory.exists() and not (directory / MANIFEST).exists():
        raise InputError(f"{directory} is there and is no attack; choose another")
    shutil.rmtree(directory, ignore_errors=True)
    save_attack(directory, attack.config, attack.params, card)
    size = sum((directory / name).stat().st_size for name in FILES)
    if size > 4_000_000 or not math.isfinite(size):
        raise InputError(f"{directory}: {size} bytes; the package takes 4 MB at most")
