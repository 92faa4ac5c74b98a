"""What `lt-mia unlearn` says of its result: `card.json` and `report.html`."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from lt_mia_jax.attacks.learned.storage import Attack
from lt_mia_jax.audit.results import command_line
from lt_mia_jax.audit.scoring import choose_attack
from lt_mia_jax.checkpoints import load_pretrained, tokenizer_of
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.questions import Question, read_questions
from lt_mia_jax.data.texts import fingerprint, text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_json
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.provenance import versions
from lt_mia_jax.report import write_report
from lt_mia_jax.unlearning.interventions.storage import load_intervention
from lt_mia_jax.verification import layers, stress
from lt_mia_jax.verification.card import UTILITY, Measured, report_card
from lt_mia_jax.verification.evaluate import (
    EvaluatedModel,
    examine,
    measure_memo,
    membership,
)
from lt_mia_jax.verification.muse import MuseTexts, muse_cards, read_muse
from lt_mia_jax.verification.storage import CARD

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the result is compared with, and how much is measured."""

    holdout: Path | None = None
    """JSONL of texts like those to forget that no model has seen; attacks need them."""

    retrained: str | None = None
    """The gold standard: a model trained without the texts to forget."""

    probes: Path | None = None
    """JSONL of the questions to forget with `wrong_answers` and `paraphrased_answer`,
    for truth ratio and forget quality; without it --forget is asked."""

    utility: Path | None = None
    """Folder with retain_perturbed.jsonl, real_authors_perturbed.jsonl and
    world_facts_perturbed.jsonl, as `lt-mia syntofu` writes them, for model utility."""

    reference: str | None = None
    """The model from before any of the texts were learned, for attacks with one."""

    attack: str = "shipped"
    """The learned attack, for which --holdout and --reference are needed: `shipped`
    with the package, a folder made by `lt-mia train`, or `none`."""

    muse: Path | None = None
    """Folder of MUSE's parts, as `lt-mia benchmark` writes them: continuations, answers
    and leakage as MUSE measures them."""

    quantise: tuple[int, ...] = ()
    """Bits to round the weights to, such as 8 4: what comes back?"""

    relearn: bool = False
    """Teach half of the forgotten questions (64 at most) again: do others come back?"""

    memo: bool = False
    """Measure MEMO, which generates from many beginnings of each answer; slow."""

    evaluated: int = 400
    """Rows of each set that are measured at most, also of --holdout, of which a TPR at
    1 % FPR needs 1,000; 0 writes no report."""


EvaluationFlags = Annotated[Evaluation, tyro.conf.arg(name="")]
"""As a field of a command: its flags have no prefix."""


def check_evaluation(
    options: Evaluation,
    forget: Sequence[Question],
    retain: Sequence[Question] | None,
) -> None:
    """Read every file of the evaluation, so that mistakes show before training.

    Raises:
      InputError: a file cannot be used, or texts stand where they must not.
    """
    if not options.evaluated:
        return
    wrong = [bits for bits in options.quantise if not 2 <= bits <= 16]
    if wrong:
        raise InputError(
            f"--quantise {' '.join(map(str, wrong))}: expected numbers of bits from 2 "
            "to 16, such as 8 4"
        )
    _material(options, forget, retain)
    _attack(options, forget)


def check_models(options: Evaluation, tokenizer: Any) -> None:
    """Look for the models of the evaluation, without reading their weights.

    Args:
      options: what to measure.
      tokenizer: that of the model to unlearn.

    Raises:
      InputError: a model is not there, or has other tokens.
    """
    if not options.evaluated:
        return
    for role in ("retrained", "reference"):
        name = getattr(options, role)
        if name is None:
            continue
        try:
            own = tokenizer_of(name)
        except InputError as error:
            raise InputError(f"--{role}: {error}") from error
        _check_tokens(name, role, own, tokenizer)


def write_evaluation(
    out: Path,
    options: Evaluation,
    forget: Sequence[Question],
    retain: Sequence[Question] | None,
    before: EvaluatedModel,
    after: EvaluatedModel,
    about: Mapping[str, Any],
) -> None:
    """Measure a model before and after unlearning; write `card.json` and the page.

    Args:
      out: the folder of the run.
      options: what to measure.
      forget: what was to be forgotten.
      retain: what was to be kept.
      before: the model before.
      after: the model after, with its intervention if it has one.
      about: method, settings and steps, as in `unlearning.json`.

    Raises:
      InputError: a file or a model cannot be used, or texts stand where they must not.
    """
    if not options.evaluated:
        return
    if jax.process_count() > 1:
        log.warning(
            "no report from several processes; the same command in one writes it"
        )
        return
    material = _material(options, forget, retain)
    subjects = {"before": before, "after": after}
    reference = None
    if options.reference is not None:
        reference = _load(options.reference, "reference", before)
    if options.retrained is not None:
        subjects["retrained"] = _load(options.retrained, "retrained", before)
    attack = _attack(options, forget)
    measured: dict[str, Measured] = {}
    for name, subject in subjects.items():
        log.info("measuring the model %s", _SAID.get(name, name))
        measured[name] = _measure(subject, reference, attack, material, options.memo)
    truth = measured.get("retrained")
    cards = {
        name: report_card(found, truth, original=measured["before"])
        for name, found in measured.items()
    }
    if material.muse is not None:
        log.info("measuring what MUSE asks")
        for name, card in muse_cards(subjects, material.muse, reference).items():
            both = [*cards[name].get("notes", ()), *card.get("notes", ())]
            cards[name] |= card | {"notes": both}
    notes = list(dict.fromkeys(n for c in cards.values() for n in c.pop("notes", ())))
    method = str(about["method"])
    document = {
        "kind": "unlearning",
        "title": f"{method}: {Path(about['model']).name} forgets "
        f"{Path(about['forget']['file']).stem}",
        "method": method,
        "settings": about["settings"],
        "forget": fingerprint([text_id(row.text) for row in material.sets["forget"]]),
        "models": cards,
        "examples": _examples(material.sets["forget"], measured),
        "scores": _scores(measured),
        "layers": None,
        "map": None,
        "rounded": [
            stress.rounding_card(subjects, material.sets["forget"], bits)
            for bits in options.quantise
        ],
        "relearning": stress.relearning_card(subjects, material.sets["forget"])
        if options.relearn
        else None,
        "notes": notes,
        "about": dict(about),
        "config": to_dict(options),
        "versions": versions(),
        "command": command_line(),
    }
    if "retrained" in subjects:
        document |= _layers(subjects, material)
    write_json(out / CARD, document)
    write_report([out], out / "report.html")
    log.info("wrote %s", out / "report.html")


_SAID = {"before": "before unlearning", "after": "after unlearning"}


@dataclasses.dataclass(frozen=True)
class _Material:
    sets: Mapping[str, Sequence[Question]]
    """Questions by set; `forget` is always there."""
    texts: Sequence[Question]
    """Forgotten texts, as they were trained on, for attacks."""
    holdout: Sequence[Question]
    muse: MuseTexts | None


def _material(
    options: Evaluation,
    forget: Sequence[Question],
    retain: Sequence[Question] | None,
) -> _Material:
    def some(rows: Sequence[Question]) -> list[Question]:
        """Evenly spaced rows, in their order."""
        count = min(len(rows), options.evaluated)
        kept = np.linspace(0, len(rows) - 1, count).round().astype(int)
        return [rows[i] for i in kept]

    probes = forget if options.probes is None else read_questions(options.probes)
    sets = {"forget": some(probes)}
    if options.utility is not None:
        for name in UTILITY:
            file = options.utility / f"{name}_perturbed.jsonl"
            sets[name] = some(read_questions(file))
    elif retain:
        sets["retain"] = some(retain)
    holdout: list[Question] = []
    if options.holdout is not None:
        holdout = read_questions(options.holdout)
        trained = {text_id(row.text) for row in (*forget, *(retain or ()))}
        seen = [row for row in holdout if text_id(row.text) in trained]
        if seen:
            raise InputError(
                f"{options.holdout}: {len(seen)} of {len(holdout)} texts are among "
                f"those to forget or to keep, first {seen[0].name}; --holdout takes "
                "texts that no model has seen"
            )
    muse = None
    if options.muse is not None:
        muse = MuseTexts(*map(some, read_muse(options.muse)))
    return _Material(sets, some(forget), some(holdout) if holdout else [], muse)


def _load(name: str, role: str, like: EvaluatedModel) -> EvaluatedModel:
    config, params, tokenizer = load_pretrained(name)
    _check_tokens(name, role, tokenizer, like.tokenizer)
    return EvaluatedModel(
        LanguageModel(config),
        params,
        like.tokenizer,
        like.template,
        like.length,
        None if is_gguf(name) else load_intervention(resolve(name), config),
    )


def _check_tokens(name: str, role: str, own: Any, tokenizer: Any) -> None:
    if own.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"--{role} {name}: its tokenizer is not that of --model; expected a model "
            "of the same family, trained on the same tokens"
        )


def _attack(options: Evaluation, forget: Sequence[Question]) -> Attack | None:
    if options.holdout is None or options.reference is None:
        if options.attack in ("shipped", "none"):
            return None
        raise InputError(
            "--attack compares forgotten with unseen texts, and the model with a "
            "reference; give --holdout and --reference"
        )
    attack = choose_attack(options.attack)
    if attack is None:
        return None
    judged = [*forget, *read_questions(options.holdout)]
    seen = [row for row in judged if {row.id, text_id(row.text)} & attack.text_ids]
    if seen:
        raise InputError(
            f"{options.attack}: {len(seen)} texts to forget or of --holdout were used "
            f"to train the attack, first {seen[0].name}; train it on other texts"
        )
    return attack


def _measure(
    subject: EvaluatedModel,
    reference: EvaluatedModel | None,
    attack: Attack | None,
    material: _Material,
    memo: bool,
) -> Measured:
    scores: list[dict[str, np.ndarray]] = [{}, {}]
    if material.holdout:
        scores = [
            membership(subject, reference, rows, attack=attack)
            for rows in (material.texts, material.holdout)
        ]
    return Measured(
        {name: examine(subject, rows) for name, rows in material.sets.items()},
        *scores,
        memo=measure_memo(subject, material.sets["forget"]) if memo else None,
    )


def _examples(
    rows: Sequence[Question], measured: Mapping[str, Measured]
) -> list[dict[str, Any]]:
    """Every forgotten question, with what each model says to it."""
    return [
        {
            "id": row.id,
            "topic": row.topic,
            "question": row.question,
            "answer": row.answer,
            "said": {
                name: {
                    "answer": found.sets["forget"].generated[i],
                    "probability": float(found.sets["forget"].probability[i]),
                    "rouge": _number(found.sets["forget"].rouge[i]),
                    "extraction": _number(found.sets["forget"].extraction_strength[i]),
                }
                for name, found in measured.items()
            },
        }
        for i, row in enumerate(rows)
    ]


def _scores(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Membership scores by model, side and attack, for curves and histograms."""
    return {
        name: {
            side: {attack: x.tolist() for attack, x in scores.items()}
            for side, scores in (
                ("forget", found.forget_scores),
                ("holdout", found.holdout_scores),
            )
        }
        for name, found in measured.items()
        if found.forget_scores
    }


def _layers(
    subjects: Mapping[str, EvaluatedModel], material: _Material
) -> dict[str, Any]:
    """Similarity to the retrained model by layer, and texts in the plane."""
    shapes = {(s.model.config.layers, s.model.config.width) for s in subjects.values()}
    if len(shapes) > 1:
        log.warning("the retrained model has another shape; no layers are compared")
        return {}
    similar: dict[str, Any] = {}
    plane: dict[str, Any] = {}
    for part in ("forget", "retain"):
        if part not in material.sets:
            continue
        streams = {
            name: layers.streams(subject, material.sets[part])
            for name, subject in subjects.items()
        }
        similar[part] = {
            "tokens": len(streams["after"].text),
            "models": {
                name: layers.similarity(found, streams["retrained"])
                for name, found in streams.items()
                if name != "retrained"
            },
        }
        plane[part] = {
            name: np.round(x, 4).tolist()
            for name, x in layers.pca_projection(streams).items()
        }
    return {"layers": similar, "map": plane}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
