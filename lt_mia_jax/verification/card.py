"""Per-item values of a model turned into numbers with intervals: the report card.

Nothing here runs a model: `evaluate` measures, this aggregates, so that a card can be
made again, or compared, from what was stored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.attacks.metrics import refuses, summarize
from lt_mia_jax.configs import to_dict
from lt_mia_jax.verification import metrics
from lt_mia_jax.verification.metrics import Interval, bootstrap_interval
from lt_mia_jax.verification.metrics.checks import PerItem

UTILITY = metrics.UTILITY_SETS
LEAK_SCORE = "min_k"
"""The score that PrivLeak reads."""
_LEAST_SPAN, _NO_SPAN = 0.02, 1e-9
_NO_ZERO = 1e9  # no PrivLeak of texts that can be counted
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
    normalized_probability: Float[np.ndarray, " N"]
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
    notes: list[str] = []
    card: dict[str, Any] = _known(measured, seed) | _kept(measured, seed, notes)
    card |= _attacked(measured, seed)
    if retrained is not None:
        card |= _against(measured, retrained, original, seed, notes)
    if notes:
        card["notes"] = notes
    return card


def interval_of_mean(values: PerItem, seed: int) -> dict[str, float | None]:
    """Mean over the items that have a value; no interval for a single one."""
    return estimate(_mean, values[~np.isnan(values)], seed=seed)


def as_json(found: Interval) -> dict[str, float | None]:
    """The fields of an interval."""
    return {"value": found.value, "low": found.low, "high": found.high}


def privacy(
    forget: tuple[PerItem, PerItem], holdout: tuple[PerItem, PerItem], seed: int
) -> dict[str, float | None] | None:
    """PrivLeak with its interval; texts are drawn alike for both models.

    None where the retrained model tells the sides apart perfectly; no interval where it
    does so in some of the draws.

    Args:
      forget: a membership score of forgotten texts, of the model and the retrained one.
      holdout: the same of texts that no model has seen.
      seed: of the bootstrap.
    """
    if metrics.member_auc(forget[1], holdout[1]) == 1:
        return None
    found = estimate(
        lambda *groups: min(_priv_leak(*groups), 2 * _NO_ZERO),
        forget,
        holdout,
        seed=seed,
    )
    if found["high"] is not None and found["high"] > _NO_ZERO:
        found |= {"low": None, "high": None}
    return found


def separation(
    forget: PerItem, holdout: PerItem, seed: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """AUC of forgotten against unseen texts, and TPR at 1 % where counts allow it."""
    labels = np.repeat([1, 0], [len(forget), len(holdout)])
    found = summarize(labels, np.concatenate([forget, holdout]), seed=seed)
    rate = to_dict(found.tpr[f"{RATE:g}"].conservative, tagged=False)
    refused = refuses(RATE, len(holdout))
    tpr: dict[str, Any] = {"rate": RATE, "refused": refused, "n_holdout": len(holdout)}
    return to_dict(found.auc, tagged=False), tpr if refused else tpr | rate


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


def _kept(measured: Measured, seed: int, notes: list[str]) -> dict[str, Any]:
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
            card["utility_parts"] = {
                name: interval_of_mean(column, seed)
                for name, column in metrics.utility_columns(sets).items()
            }
            groups = [tuple(items) for items in sets.values()]
            card["model_utility"] = as_json(
                bootstrap_interval(_model_utility, *groups, seed=seed)
            )
        else:
            notes.append(
                "No model utility: some of its questions have no wrong answers, or an "
                "answer without a word of ASCII letters or digits."
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
        card["loss_gap_nats"] = estimate(_gap, *groups, seed=seed)
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
        found = privacy(
            (values, retrained.forget_scores[name]),
            (measured.holdout_scores[name], retrained.holdout_scores[name]),
            seed,
        )
        if found is None:
            perfect.append(name)
            continue
        card[f"leak_{name}"] = found
        if name == LEAK_SCORE:
            card["priv_leak"] = found
    if perfect:
        notes.append(no_leakage(perfect))
    attack = metrics.threshold_attack(forget.probability, truth.probability)
    card["told_from_retrained"] = {
        **_told_apart(attack.threshold, forget.probability, truth.probability, seed),
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
        card["completeness_gap"] = {
            f"p{percent:02d}": estimate(
                lambda gap, at=percent / 100: metrics.quantiles(gap, [at])[0],
                complete.gap,
                seed=seed,
            )
            for percent in (5, 50, 95)
        }
    if original is not None:
        left = knowledge_left(
            original.sets["forget"].probability,
            forget.probability,
            truth.probability,
            seed=seed,
        )
        if left is not None:
            card["forget_knowledge_left"] = left
    return card


def knowledge_left(
    original: PerItem, unlearned: PerItem, retrained: PerItem, *, seed: int = 0
) -> dict[str, float | None] | None:
    """Knowledge beyond the retrained model's: 1 as before unlearning, 0 as retrained.

    The ratio of differences of mean probabilities, not clipped; questions are drawn
    alike for the three models.

    Args:
      original: probability of each true answer before unlearning.
      unlearned: after it.
      retrained: of the model that never saw the questions.
      seed: of the bootstrap.

    Returns:
      None where original and retrained model hardly differ, so that there is no scale.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454
    (retained knowledge), with the retrained model as zero.
    """
    if abs(original.mean() - retrained.mean()) < _LEAST_SPAN:
        return None

    def left(group: tuple[np.ndarray, ...]) -> float:
        one, value, zero = (float(x.mean()) for x in group)
        if one == zero:  # a draw without a scale lies far out
            one = zero + _NO_SPAN
        return metrics.recovered_fraction(value, original=one, retrained=zero)

    return estimate(left, (original, unlearned, retrained), seed=seed)


def no_leakage(names: Sequence[str]) -> str:
    """Why there is no PrivLeak from some scores, in words."""
    return (
        f"No leakage from {', '.join(names)}: even the retrained model tells forget "
        "from holdout texts perfectly, so the two sets differ by more than training; "
        "draw them from one source."
    )


def _told_apart(
    threshold: float, forget: PerItem, truth: PerItem, seed: int
) -> dict[str, float | None]:
    """Interval at the threshold that was found: choosing it again would lift it."""
    cut = np.array([threshold])

    def score(group: tuple[np.ndarray, np.ndarray]) -> float:
        return metrics.threshold_attack(*group, thresholds=cut).attack_score

    return estimate(score, (forget, truth), seed=seed)


def estimate(
    aggregate: Callable[..., float], *groups: Any, seed: int
) -> dict[str, float | None]:
    """A number with its 95 % interval; without one for groups of a single item.

    Arguments as of `metrics.bootstrap_interval`.
    """
    counts = [len(g[0]) if isinstance(g, tuple) else len(g) for g in groups]
    if min(counts) < 2:
        return {"value": aggregate(*groups), "low": None, "high": None}
    return as_json(bootstrap_interval(aggregate, *groups, seed=seed))


def _utility(sets: Mapping[str, Items]) -> dict[str, metrics.UtilityItems]:
    return {
        name: metrics.UtilityItems(
            items.probability if name == "retain" else items.normalized_probability,
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
    """Percent; infinite where the retrained model alone separates perfectly."""
    mine, theirs = (
        metrics.member_auc(f, h) for f, h in zip(forget, holdout, strict=True)
    )
    if theirs == 1:
        return 0.0 if mine == 1 else math.inf
    return metrics.priv_leak(mine, theirs)


__all__ = [
    "ITEM_VALUES",
    "RATE",
    "UTILITY",
    "Items",
    "Measured",
    "as_json",
    "estimate",
    "interval_of_mean",
    "knowledge_left",
    "no_leakage",
    "privacy",
    "report_card",
    "separation",
]
