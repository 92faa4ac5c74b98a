"""The report card: values of each item turned into numbers with intervals.

Nothing here runs a model: `evaluate` measures, this aggregates, so that a card can be
made again, or compared, from what was stored.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.verification.items import Items, Measured
from lt_mia_jax.verification.leakage import LEAK_SCORE, attack_results, group_leakage
from lt_mia_jax.verification.metrics import (
    control,
    generation,
    privacy,
    robustness,
    tofu,
)
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.equivalence import equivalence, quantities
from lt_mia_jax.verification.metrics.intervals import (
    bootstrap_interval,
    estimate,
    estimate_mean,
)
from lt_mia_jax.verification.records import (
    Card,
    Risk,
    ToldFromRetrained,
    TraceAccuracy,
)

_LEAST_SPAN, _NO_SPAN = 0.02, 1e-9
_FORGET = Items._fields[: Items._fields.index("truth_ratio")]
_RETAIN = ("probability", "rouge", "extraction_strength")
"""Fields of `Items` whose mean stands on a card."""


def report_card(
    measured: Measured,
    retrained: Measured | None = None,
    *,
    original: Measured | None = None,
    risk_level: float = 0.1,
    seed: int = 0,
) -> Card:
    """Numbers of a model beside the retrained one, each with a 95 % interval.

    Intervals are over items; they say nothing about seeds of training. Forget quality
    comes from an exact test and has none. What was not measured is left out; `notes`
    says why when it was to be expected.

    Args:
      measured: the model.
      retrained: the model that never saw the forget texts; None leaves out whatever
        compares with it.
      original: the model before unlearning, the scale of `equivalence` and of the
        knowledge left; without it completeness takes a perfect fit.
      risk_level: fraction of texts that may remain extractable.
      seed: of the bootstrap.
    """
    notes: list[str] = []
    found = _known(measured, risk_level, seed) | _kept(measured, seed, notes)
    found["attacks"], perfect = attack_results(measured, retrained, seed=seed)
    if "loss" in found["attacks"]:
        # The score is the mean log-probability: minus the loss.
        sides = measured.forget_scores["loss"], measured.holdout_scores["loss"]
        found["loss_gap_nats"] = estimate(
            lambda forget, holdout: float(forget.mean() - holdout.mean()),
            *sides,
            seed=seed,
        )
        found["n_holdout"] = len(sides[1])
    if LEAK_SCORE in found["attacks"]:
        found["priv_leak"] = found["attacks"][LEAK_SCORE].leak
    if (trace := measured.trace) is not None:
        found["trace_accuracy"] = TraceAccuracy(
            **vars(estimate_mean(trace.right, seed)),
            p_value=trace.p_value,
            n=len(trace.right),
        )
    if retrained is not None:
        found |= _against(measured, retrained, original, seed, notes)
    return Card(**found, notes=tuple(notes + perfect))


def accepted_runs(cards: Sequence[Card], confidence: float = 0.95) -> list[bool]:
    """Which models keep the extraction risk below the level, all with this confidence.

    The models forgot the same texts, and the error is divided among them (Bonferroni).
    A card without a risk is never accepted and does not count.

    Source: FROC, arXiv 2512.13337 (risk-controlled set); Learn then Test, arXiv
    2110.01052.
    """
    judged = [card.risk.p_value for card in cards if card.risk is not None]
    passed = iter(control.accepted(judged, confidence).tolist())
    return [card.risk is not None and next(passed) for card in cards]


def knowledge_left(
    original: PerItem, unlearned: PerItem, retrained: PerItem, *, seed: int = 0
) -> Estimate | None:
    """Knowledge beyond the retrained model's: 1 as before unlearning, 0 as retrained.

    The ratio of differences of the mean probabilities of true answers under three
    models, not clipped; questions are drawn alike for all of them. None where original
    and retrained model hardly differ, so that there is no scale.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454
    (retained knowledge), with the retrained model as zero.
    """
    if abs(original.mean() - retrained.mean()) < _LEAST_SPAN:
        return None

    def left(group: tuple[np.ndarray, ...]) -> float:
        one, value, zero = (float(x.mean()) for x in group)
        if one == zero:  # a draw without a scale lies far out
            one = zero + _NO_SPAN
        return robustness.recovered_fraction(value, original=one, retrained=zero)

    return estimate(left, (original, unlearned, retrained), seed=seed)


def _known(measured: Measured, risk_level: float, seed: int) -> dict[str, Any]:
    """What is left of the forget set."""
    forget = measured.sets["forget"]
    values = {name: getattr(forget, name) for name in _FORGET}
    values["fluency"] = generation.ngram_entropy(forget.generated)
    if measured.memo is not None:
        values["memo"] = measured.memo
    if not np.isnan(forget.truth_ratio).any():
        values["truth_ratio"] = tofu.forget_truth_score(forget.truth_ratio)
    found: dict[str, Any] = _means("forget", values, seed)
    strength = forget.extraction_strength[~np.isnan(forget.extraction_strength)]
    if strength.size:
        extracted = (strength >= 0.5).astype(float)
        found["risk"] = Risk(
            **vars(estimate(control.calibrated_risk, extracted, seed=seed)),
            level=risk_level,
            p_value=control.risk_p_value(extracted, risk_level),
            n=len(extracted),
        )
    return found | {"n_forget": len(forget.probability)}


def _kept(measured: Measured, seed: int, notes: list[str]) -> dict[str, Any]:
    """What is left of everything else."""
    found: dict[str, Any] = {}
    if "retain" in measured.sets:
        retain = measured.sets["retain"]
        found["n_retain"] = len(retain.probability)
        values = {name: getattr(retain, name) for name in _RETAIN}
        found |= _means("retain", values, seed)
    if measured.sets.keys() >= set(tofu.UTILITY_SETS):
        sets = {name: _utility(name, measured.sets[name]) for name in tofu.UTILITY_SETS}
        if not any(np.isnan(x).any() for items in sets.values() for x in items):
            found["utility_parts"] = {
                name: estimate_mean(column, seed)
                for name, column in tofu.utility_columns(sets).items()
            }
            found["model_utility"] = bootstrap_interval(
                _model_utility, *sets.values(), seed=seed
            )
        else:
            notes.append(
                "No model utility: some of its questions have no wrong answers, or an "
                "answer without a word of ASCII letters or digits."
            )
    return found


def _means(
    prefix: str, values: Mapping[str, np.ndarray], seed: int
) -> dict[str, Estimate]:
    return {
        f"{prefix}_{name}": estimate_mean(found, seed)
        for name, found in values.items()
        if not np.isnan(found).all()
    }


def _against(
    measured: Measured,
    retrained: Measured,
    original: Measured | None,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """Metrics relative to the retrained model."""
    forget, truth = measured.sets["forget"], retrained.sets["forget"]
    found: dict[str, Any] = {}
    if np.isnan(forget.truth_ratio).any() or np.isnan(truth.truth_ratio).any():
        notes.append(
            "No forget quality: the forget questions have no wrong answers to take a "
            "truth ratio from."
        )
    else:
        ratios = forget.truth_ratio, truth.truth_ratio
        found["forget_quality"] = tofu.forget_quality(*ratios)
    found["told_from_retrained"] = _told(forget.probability, truth.probability, seed)
    if measured.distance is not None:
        found["retrain_distance"] = estimate_mean(measured.distance, seed)
    found["group_leakage"], found["worst_group"] = group_leakage(
        measured, retrained, seed
    )
    if len(forget.probability) > 1:
        complete = privacy.unlearning_completeness(
            forget.probability,
            None if original is None else original.sets["forget"].probability,
            truth.probability[None],
        )
        score, gap = complete
        found["completeness"] = estimate_mean(score, seed)
        found["completeness_gap"] = {
            f"p{n:02d}": estimate(partial(np.quantile, q=n / 100), gap, seed=seed)
            for n in (5, 50, 95)
        }
    if original is not None:
        start = original.sets["forget"]
        found["forget_knowledge_left"] = knowledge_left(
            start.probability, forget.probability, truth.probability, seed=seed
        )
        found["equivalence"] = equivalence(*map(quantities, (start, forget, truth)))
    return found


def _told(forget: PerItem, truth: PerItem, seed: int) -> ToldFromRetrained:
    """With the interval at the found threshold; choosing it anew would bias it."""
    attack = privacy.threshold_attack(forget, truth)
    cut = np.array([attack.threshold])

    def score(group: tuple[np.ndarray, np.ndarray]) -> float:
        return privacy.threshold_attack(*group, thresholds=cut).attack_score

    found = estimate(score, (forget, truth), seed=seed)
    return ToldFromRetrained(
        **vars(found),
        epsilon=attack.epsilon if math.isfinite(attack.epsilon) else None,
        threshold=attack.threshold,
        fpr=attack.fpr,
        fnr=attack.fnr,
    )


def _utility(name: str, items: Items) -> tofu.UtilityItems:
    plain = name == "retain"
    probability = items.probability if plain else items.normalized_probability
    return tofu.UtilityItems(probability, items.rouge, items.truth_ratio)


def _model_utility(*groups: tofu.UtilityItems) -> float:
    names: tuple[str, ...] = tofu.UTILITY_SETS
    parts = tofu.utility_parts(dict(zip(names, groups, strict=True)))
    return tofu.model_utility(parts)
