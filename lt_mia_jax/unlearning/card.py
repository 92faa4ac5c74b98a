"""Per-item values of a model turned into numbers with intervals: the report card.

Nothing here runs a model: `evaluate` measures, this aggregates, so that a card can be
made again, or compared, from what was stored.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.attacks.metrics import refuses, summarize
from lt_mia_jax.unlearning import metrics
from lt_mia_jax.unlearning.metrics import Interval, bootstrap_interval
from lt_mia_jax.unlearning.metrics.checks import PerItem

UTILITY = metrics.UTILITY_SETS
RATE = 0.01
"""False-positive rate of the true-positive rates on a card."""
ITEM_VALUES = (
    "probability",
    "rouge",
    "exact_memorisation",
    "extraction_strength",
    "slot_accuracy",
    "slot_log_rank",
)
"""Fields of `Items` whose mean stands on a card."""


class Items(NamedTuple):
    """Values of each question of a set, `[N]`; NaN where a question has none."""

    probability: Float[np.ndarray, " N"]
    """exp(-mean loss of the answer)."""
    rouge: Float[np.ndarray, " N"]
    """ROUGE-L recall of the greedy answer."""
    exact_memorisation: Float[np.ndarray, " N"]
    extraction_strength: Float[np.ndarray, " N"]
    slot_accuracy: Float[np.ndarray, " N"]
    """Whether the value alone is predicted, teacher forced."""
    slot_log_rank: Float[np.ndarray, " N"]
    truth_ratio: Float[np.ndarray, " N"]
    """Wrong answers over the paraphrased (or plain) right one."""
    normalised_probability: Float[np.ndarray, " N"]
    """Probability among right and wrong answers."""
    generated: tuple[str, ...]
    """The greedy answers."""


class Measured(NamedTuple):
    """Everything about one model that a card is made of."""

    sets: Mapping[str, Items]
    """`forget`, and for model utility `retain`, `real_authors`, `world_facts`."""
    forget_scores: Mapping[str, Float[np.ndarray, " N"]] = {}
    """Membership scores of forgotten texts."""
    holdout_scores: Mapping[str, Float[np.ndarray, " M"]] = {}
    """Of texts that no model has seen."""
    memo: Float[np.ndarray, " N"] | None = None
    """MEMO of the forgotten answers, where it was measured."""


def report_card(
    measured: Measured,
    retrained: Measured | None = None,
    *,
    original: Measured | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Numbers of a model beside the retrained one, each with a 95 % interval.

    Intervals are over items; they say nothing about seeds of training. Forget quality
    and its distance come from the exact two-sample test and have none. What was not
    measured is left out; `notes` says why when it was to be expected.

    Args:
      measured: the model.
      retrained: the model that never saw the forget texts; None leaves out whatever
        compares with it.
      original: the model before unlearning, for unlearning completeness; None takes a
        perfect fit.
      seed: of the bootstrap.
    """
    card: dict[str, Any] = _known(measured, seed) | _kept(measured, seed)
    card |= _attacked(measured, seed)
    notes: list[str] = []
    if retrained is not None:
        card |= _against(measured, retrained, original, seed, notes)
    if notes:
        card["notes"] = notes
    return card


def interval_of_mean(values: PerItem, seed: int) -> dict[str, float | None]:
    """Mean over the items that have a value; no interval for a single one."""
    present = values[~np.isnan(values)]
    if len(present) < 2:
        return {"value": float(present.mean()), "low": None, "high": None}
    return as_json(bootstrap_interval(_mean, present, seed=seed))


def as_json(found: Interval) -> dict[str, float | None]:
    """The fields of an interval."""
    return {"value": found.value, "low": found.low, "high": found.high}


def privacy(
    forget: tuple[PerItem, PerItem], holdout: tuple[PerItem, PerItem], seed: int
) -> dict[str, float | None]:
    """PrivLeak with its interval; texts are drawn alike for both models.

    Args:
      forget: a membership score of forgotten texts, of the model and the retrained one.
      holdout: the same of texts that no model has seen.
      seed: of the bootstrap.
    """
    if min(len(forget[0]), len(holdout[0])) < 2:
        return {"value": _priv_leak(forget, holdout), "low": None, "high": None}
    return as_json(bootstrap_interval(_priv_leak, forget, holdout, seed=seed))


def separation(
    forget: PerItem, holdout: PerItem, seed: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """AUC of forgotten against unseen texts, and TPR at 1 % where counts allow it."""
    labels = np.repeat([1, 0], [len(forget), len(holdout)])
    found = summarize(labels, np.concatenate([forget, holdout]), seed=seed)
    rate = found["tpr"][f"{RATE:g}"]
    refused = refuses(RATE, len(holdout))
    tpr: dict[str, Any] = {"rate": RATE, "refused": refused, "n_holdout": len(holdout)}
    return found["auc"], tpr if refused else tpr | rate["conservative"]


def _known(measured: Measured, seed: int) -> dict[str, Any]:
    """What is left of the forget set."""
    forget = measured.sets["forget"]
    card = {"n_forget": len(forget.probability)}
    values = {name: getattr(forget, name) for name in ITEM_VALUES}
    if measured.memo is not None:
        values["memo"] = measured.memo
    card |= {
        f"forget_{name}": interval_of_mean(found, seed)
        for name, found in values.items()
        if not np.isnan(found).all()
    }
    if not np.isnan(forget.truth_ratio).any():
        score = metrics.forget_truth_score(forget.truth_ratio)
        card["forget_truth_ratio"] = interval_of_mean(score, seed)
    return card


def _kept(measured: Measured, seed: int) -> dict[str, Any]:
    """What is left of everything else."""
    card: dict[str, Any] = {}
    if "retain" in measured.sets:
        retain = measured.sets["retain"]
        card["n_retain"] = len(retain.probability)
        card |= {
            f"retain_{name}": interval_of_mean(getattr(retain, name), seed)
            for name in ("probability", "rouge", "extraction_strength")
            if not np.isnan(getattr(retain, name)).all()
        }
    if set(UTILITY) <= set(measured.sets):
        sets = _utility(measured.sets)
        if not any(np.isnan(x).any() for items in sets.values() for x in items):
            card["utility_parts"] = metrics.utility_parts(sets)
            groups = [tuple(items) for items in sets.values()]
            card["model_utility"] = as_json(
                bootstrap_interval(_model_utility, *groups, seed=seed)
            )
    return card


def _attacked(measured: Measured, seed: int) -> dict[str, Any]:
    """How well attacks tell forgotten texts from texts that no model has seen."""
    card: dict[str, Any] = {}
    for name, forget in measured.forget_scores.items():
        holdout = measured.holdout_scores[name]
        card[f"auc_{name}"], card[f"tpr_{name}"] = separation(forget, holdout, seed)
    if "loss" in measured.forget_scores:
        # The score is the mean log-probability: minus the loss.
        groups = measured.forget_scores["loss"], measured.holdout_scores["loss"]
        card["loss_gap_nats"] = (
            as_json(bootstrap_interval(_gap, *groups, seed=seed))
            if min(map(len, groups)) > 1
            else {"value": _gap(*groups), "low": None, "high": None}
        )
        card["n_holdout"] = len(groups[1])
    return card


def _against(
    measured: Measured,
    retrained: Measured,
    original: Measured | None,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """Everything that the retrained model is the zero of."""
    forget, truth = measured.sets["forget"], retrained.sets["forget"]
    card: dict[str, Any] = {}
    if np.isnan(forget.truth_ratio).any() or np.isnan(truth.truth_ratio).any():
        notes.append(
            "No forget quality: the forget questions have no wrong answers to take a "
            "truth ratio from."
        )
    else:
        quality = metrics.forget_quality(forget.truth_ratio, truth.truth_ratio)
        card["forget_quality"] = {
            "value": quality.p_value,
            "log10": quality.log10_p,
            "distance": quality.distance,
            "n": [quality.n_unlearned, quality.n_retrained],
            "log10_floor": quality.log10_floor,
            "note": quality.note,
        }
    perfect = []
    for name, values in measured.forget_scores.items():
        mine, theirs = (
            metrics.member_auc(x.forget_scores[name], x.holdout_scores[name])
            for x in (measured, retrained)
        )
        if theirs == 1:
            perfect.append(name)
        else:
            card[f"leak_{name}"] = {"value": metrics.priv_leak(mine, theirs)}
            if name == "min_k":
                card["priv_leak"] = privacy(
                    (values, retrained.forget_scores[name]),
                    (measured.holdout_scores[name], retrained.holdout_scores[name]),
                    seed,
                )
    if perfect:
        notes.append(
            f"No leakage from {', '.join(perfect)}: even the retrained model tells "
            "forget from holdout texts perfectly, so the two sets differ by more than "
            "training; draw them from one source."
        )
    attack = metrics.threshold_attack(forget.probability, truth.probability)
    card["told_from_retrained"] = {
        "value": attack.attack_score,
        "epsilon": attack.epsilon if math.isfinite(attack.epsilon) else None,
        "threshold": attack.threshold,
        "fpr": attack.fpr,
        "fnr": attack.fnr,
    }
    if len(forget.probability) > 1:
        complete = metrics.unlearning_completeness(
            forget.probability,
            None if original is None else original.sets["forget"].probability,
            truth.probability[None],
        )
        card["completeness"] = interval_of_mean(complete.score, seed)
        card["completeness_gap"] = dict(
            zip(("p05", "p50", "p95"), metrics.quantiles(complete.gap), strict=True)
        )
    return card


def _utility(sets: Mapping[str, Items]) -> dict[str, metrics.UtilityItems]:
    return {
        name: metrics.UtilityItems(
            items.probability if name == "retain" else items.normalised_probability,
            items.rouge,
            items.truth_ratio,
        )
        for name, items in ((name, sets[name]) for name in UTILITY)
    }


def _model_utility(*groups: tuple[np.ndarray, ...]) -> float:
    sets = {
        name: metrics.UtilityItems(*group)
        for name, group in zip(UTILITY, groups, strict=True)
    }
    return metrics.model_utility(metrics.utility_parts(sets))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _gap(forget: np.ndarray, holdout: np.ndarray) -> float:
    return float(np.mean(forget) - np.mean(holdout))


def _priv_leak(
    forget: tuple[np.ndarray, np.ndarray], holdout: tuple[np.ndarray, np.ndarray]
) -> float:
    """Percent; on a draw where the retrained model separates perfectly, its limit."""
    mine, theirs = (
        1 - metrics.member_auc(f, h) for f, h in zip(forget, holdout, strict=True)
    )
    return 100 * (mine - theirs) / max(theirs, 1e-10)


__all__ = [
    "ITEM_VALUES",
    "RATE",
    "UTILITY",
    "Items",
    "Measured",
    "as_json",
    "interval_of_mean",
    "privacy",
    "report_card",
    "separation",
]
