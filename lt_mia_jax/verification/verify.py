"""Did it forget? A model before and after unlearning, measured and compared.

`read_material` and `check_models` look at everything an evaluation needs, so that
mistakes show before training; `verify` measures and returns the record that the report
is made from.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.attacks.learned.storage import Attack
from lt_mia_jax.checkpoints import load_pretrained, tokenizer_of
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.pretrained import located
from lt_mia_jax.data.questions import Question, read_questions
from lt_mia_jax.data.texts import fingerprint, text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.verification import evaluate, layers, stress
from lt_mia_jax.verification.card import report_card
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.metrics.tofu import UTILITY_SETS
from lt_mia_jax.verification.muse import MuseTexts, muse_cards, read_muse
from lt_mia_jax.verification.options import Evaluation
from lt_mia_jax.verification.records import (
    Example,
    LayerSimilarity,
    Said,
    Verification,
)

log = logging.getLogger(__name__)

LoadIntervention = Callable[[Any, Any], Any]
"""Reads the intervention of a model from its folder and `ModelConfig`."""


class Material(NamedTuple):
    """The texts of an evaluation, at most `evaluated` of each set."""

    sets: Mapping[str, Sequence[Question]]
    """Questions by set; `forget` is always there."""
    texts: Sequence[Question]
    """Forgotten texts, as they were trained on, for attacks."""
    holdout: Sequence[Question]
    """Texts that no model has seen."""
    muse: MuseTexts | None
    attack: Attack | None


def read_material(
    options: Evaluation,
    forget: Sequence[Question],
    retain: Sequence[Question] | None,
    choose_attack: Callable[[str], Attack | None],
) -> Material:
    """Read every file of an evaluation.

    Args:
      options: what to measure.
      forget: the texts to forget.
      retain: the texts to keep.
      choose_attack: the learned attack that a value of `--attack` names.

    Raises:
      InputError: a flag or a file cannot be used, or texts stand where they must not.
    """
    for bits in options.quantize:
        stress.check_grid(bits, options.grid)
    if not 0 < options.risk_level < 1:
        raise InputError(
            f"--risk-level {options.risk_level}: expected a fraction between 0 and 1"
        )
    if options.retrained_again is not None and options.retrained is None:
        raise InputError("--retrained-again is compared with --retrained; give both")

    some = partial(stress.spread, most=options.evaluated)
    probes = forget if options.probes is None else read_questions(options.probes)
    sets = {"forget": some(probes)}
    if options.utility is not None:
        for name in UTILITY_SETS:
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
        folder = options.muse
        muse = read_muse(lambda part: some(read_questions(folder / f"{part}.jsonl")))
    attack = _attack(options, [*forget, *holdout], choose_attack)
    return Material(sets, some(forget), some(holdout), muse, attack)


def check_models(options: Evaluation, tokenizer: Any) -> None:
    """Look for the models of an evaluation, without reading their weights.

    Their tokenizers must be that of the model to unlearn.

    Raises:
      InputError: a model is not there, or has other tokens.
    """
    for role in ("retrained", "retrained_again", "reference"):
        if (name := getattr(options, role)) is not None:
            try:
                own = tokenizer_of(name)
            except InputError as error:
                raise InputError(f"--{role.replace('_', '-')}: {error}") from error
            _check_tokens(name, role, own, tokenizer)


def verify(
    options: Evaluation,
    material: Material,
    before: EvaluatedModel,
    after: EvaluatedModel,
    load_intervention: LoadIntervention,
) -> Verification:
    """Measure a model before and after unlearning, and what it is compared with.

    `load_intervention` reads what the retrained and the reference model come with.

    Raises:
      InputError: a model cannot be used.
    """

    def load(role: str) -> EvaluatedModel | None:
        name = getattr(options, role)
        if name is None:
            return None
        config, params, tokenizer = load_pretrained(name)
        _check_tokens(name, role, tokenizer, before.tokenizer)
        wanted = before.model.config.vocab_size
        if role != "reference" and config.vocab_size != wanted:
            raise InputError(
                f"--{role.replace('_', '-')} {name}: has {config.vocab_size} token "
                f"ids, --model has {wanted}; expected a model of the same size"
            )
        whole, _ = located(name)
        edit = None if is_gguf(whole) else load_intervention(whole, config)
        return before._replace(
            model=LanguageModel(config), params=params, intervention=edit
        )

    reference, retrained = load("reference"), load("retrained")
    models = {"before": before, "after": after}
    if retrained is not None:
        models["retrained"] = retrained
    measured: dict[str, Measured] = {}
    for name, model in models.items():
        after_what = "" if name == "retrained" else " unlearning"
        log.info("measuring the model %s%s", name, after_what)
        measured[name] = _measure(model, reference, material, options)
    streams = _streams(models, material)
    for name in models.keys() - {"before"}:
        pair = ([part[n] for part in streams.values()] for n in ("before", name))
        if streams:
            measured[name] = measured[name]._replace(trace=layers.trace(*pair))
    if retrained is not None:
        log.info("measuring distances to the retrained model")
        others = {**models, "retrained": load("retrained_again")}
        for name, model in others.items():
            if model is not None:
                found = evaluate.retrain_distances(
                    model, retrained, material.sets["forget"]
                )
                measured[name] = measured[name]._replace(distance=found)
    cards = {
        name: report_card(
            found,
            measured.get("retrained"),
            original=measured["before"],
            risk_level=options.risk_level,
        )
        for name, found in measured.items()
    }
    if material.muse is not None:
        log.info("measuring what MUSE asks")
        stem = options.muse_stem
        asked = muse_cards(models, material.muse, reference, stem=stem)
        for name, found in asked.items():
            notes = (*cards[name].notes, *found.notes)
            cards[name] = replace(
                cards[name], muse=replace(found, notes=()), notes=notes
            )
    rows = material.sets["forget"]
    similar = "retrained" in models and bool(streams)
    return Verification(
        forget=fingerprint([text_id(row.text) for row in rows]),
        models={name: replace(card, notes=()) for name, card in cards.items()},
        examples=_examples(rows, measured),
        scores={
            name: {
                "forget": _tuples(found.forget_scores),
                "holdout": _tuples(found.holdout_scores),
            }
            for name, found in measured.items()
            if found.forget_scores
        },
        layers={part: _similarity(found) for part, found in streams.items()}
        if similar
        else None,
        map={part: _plane(found) for part, found in streams.items()}
        if similar
        else None,
        rounded=tuple(
            stress.rounding_card(models, rows, bits, grid=options.grid)
            for bits in options.quantize
        ),
        relearning=stress.relearning_card(models, rows) if options.relearn else None,
        notes=tuple(dict.fromkeys(n for card in cards.values() for n in card.notes)),
    )


def _attack(
    options: Evaluation,
    judged: Sequence[Question],
    choose_attack: Callable[[str], Attack | None],
) -> Attack | None:
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
    seen = [row for row in judged if {row.id, text_id(row.text)} & attack.text_ids]
    if seen:
        raise InputError(
            f"{options.attack}: {len(seen)} texts to forget or of --holdout were used "
            f"to train the attack, first {seen[0].name}; train it on other texts"
        )
    return attack


def _check_tokens(name: str, role: str, own: Any, tokenizer: Any) -> None:
    if own.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"--{role.replace('_', '-')} {name}: its tokenizer is not that of --model; "
            "expected a model of the same family, trained on the same tokens"
        )


def _measure(
    model: EvaluatedModel,
    reference: EvaluatedModel | None,
    material: Material,
    options: Evaluation,
) -> Measured:
    scores: list[dict[str, np.ndarray]] = [{}, {}]
    if material.holdout:
        scores = [
            evaluate.membership(
                model,
                reference,
                rows,
                attack=material.attack,
                end_token=options.score_end_token,
            )
            for rows in (material.texts, material.holdout)
        ]
    memo = None
    if options.memo:
        memo = evaluate.measure_memo(model, material.sets["forget"])
    return Measured(
        {name: evaluate.examine(model, rows) for name, rows in material.sets.items()},
        *scores,
        memo=memo,
        topics=tuple(row.topic for row in material.texts),
    )


Parts = Mapping[str, Mapping[str, layers.Streams]]
"""Residual streams by set and model."""


def _streams(models: Mapping[str, EvaluatedModel], material: Material) -> Parts:
    """Residual streams of both sets; empty where the models have other shapes."""
    shapes = {(m.model.config.layers, m.model.config.width) for m in models.values()}
    if len(shapes) > 1:
        log.warning("the retrained model has another shape; no layers are compared")
        return {}
    last = "retrained" not in models  # what traces need
    return {
        part: {
            name: layers.streams(model, material.sets[part], last_only=last)
            for name, model in models.items()
        }
        for part in ("forget", "retain")
        if part in material.sets
    }


def _similarity(streams: Mapping[str, layers.Streams]) -> LayerSimilarity:
    return LayerSimilarity(
        tokens=len(streams["after"].text),
        models={
            name: tuple(layers.similarity(found, streams["retrained"]))
            for name, found in streams.items()
            if name != "retrained"
        },
    )


def _plane(streams: Mapping[str, layers.Streams]) -> dict[str, Any]:
    """Texts in the plane, by model."""
    return {
        name: tuple(map(tuple, np.round(points, 4).tolist()))
        for name, points in layers.pca_projection(streams).items()
    }


def _examples(
    rows: Sequence[Question], measured: Mapping[str, Measured]
) -> tuple[Example, ...]:
    """Every forgotten question, with what each model says to it."""

    def said(found: Measured, i: int) -> Said:
        items = found.sets["forget"]
        return Said(
            answer=items.generated[i],
            probability=float(items.probability[i]),
            rouge=_number(items.rouge[i]),
            extraction=_number(items.extraction_strength[i]),
        )

    return tuple(
        Example(
            id=row.id,
            topic=row.topic,
            question=row.question,
            answer=row.answer,
            said={name: said(found, i) for name, found in measured.items()},
        )
        for i, row in enumerate(rows)
    )


def _tuples(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values.tolist()) for name, values in scores.items()}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
