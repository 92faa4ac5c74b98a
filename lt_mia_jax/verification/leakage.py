"""What attacks still see: their strength, leakage beside retraining, and by group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.attacks.metrics import refuses, summarize
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.intervals import estimate
from lt_mia_jax.verification.metrics.muse import member_auc, priv_leak
from lt_mia_jax.verification.metrics.privacy import privacy_leakage
from lt_mia_jax.verification.records import AttackResult, GroupLeakage, TprAtRate

LEAK_SCORE = "min_k"
"""The score that PrivLeak reads."""
RATE = 0.01
"""False-positive rate of the true-positive rates on a card."""
FEWEST = 8
"""A topic with fewer texts has no leakage of its own."""
_NO_ZERO = 1e9  # a leakage beyond it has no retrained model to compare with

Pair = tuple[PerItem, PerItem]
Scores = Mapping[str, PerItem]


def attack_results(
    forget: Scores,
    holdout: Scores,
    retrained: tuple[Scores, Scores] | None,
    *,
    leaks: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[dict[str, AttackResult], list[str]]:
    """Every attack on forgotten against unseen texts.

    Args:
      forget: membership scores of forgotten texts, by attack.
      holdout: the same of texts that no model has seen.
      retrained: both of the retrained model, for PrivLeak.
      leaks: attacks with a PrivLeak; None takes all.
      seed: of the bootstrap.

    Returns:
      Results by attack, and why some have no PrivLeak.
    """
    found, perfect = {}, []
    for name, values in forget.items():
        auc, tpr = separation(values, holdout[name], seed)
        found[name] = AttackResult(auc=auc, tpr=tpr)
        if retrained is None or (leaks is not None and name not in leaks):
            continue
        sides = (values, retrained[0][name]), (holdout[name], retrained[1][name])
        if (leak := privacy(*sides, seed)) is None:
            perfect.append(name)
        else:
            found[name] = replace(found[name], leak=leak)
    if not perfect:
        return found, []
    return found, [
        f"No leakage from {', '.join(perfect)}: even the retrained model tells forget "
        "from holdout texts perfectly, so the two sets differ by more than training; "
        "draw them from one source."
    ]


def separation(
    forget: PerItem, holdout: PerItem, seed: int
) -> tuple[Estimate, TprAtRate]:
    """AUC of forgotten against unseen texts, and TPR at 1 % where counts allow it."""
    labels = np.repeat([1, 0], [len(forget), len(holdout)])
    found = summarize(labels, np.concatenate([forget, holdout]), seed=seed)
    rate = found.tpr[f"{RATE:g}"].conservative
    return found.auc, TprAtRate(
        rate=RATE,
        refused=refuses(RATE, len(holdout)),
        n_holdout=len(holdout),
        value=rate.value,
        low=rate.low,
        high=rate.high,
    )


def privacy(forget: Pair, holdout: Pair, seed: int) -> Estimate | None:
    """PrivLeak with its interval; texts are drawn alike for both models.

    None where the retrained model tells the sides apart perfectly; no interval where it
    does so in some of the draws.

    Args:
      forget: a membership score of forgotten texts, of the model and the retrained one.
      holdout: the same of texts that no model has seen.
      seed: of the bootstrap.
    """
    if member_auc(forget[1], holdout[1]) == 1:
        return None
    return _bounded(estimate(_priv_leak, forget, holdout, seed=seed))


def group_leakage(
    measured: Measured, retrained: Measured, seed: int
) -> tuple[tuple[GroupLeakage, ...], GroupLeakage | None]:
    """Leakage of every attack on every topic, and the largest in size.

    A topic needs `FEWEST` texts. Only the largest has an interval; that it was chosen
    lifts it, so compare it with the one of a second retrained model.

    Source: Underestimated Privacy Risks for Minority Populations in Large Language
    Model Unlearning, arXiv 2412.08559 (worst case over groups).
    """
    topics = np.array([topic or "" for topic in measured.topics])
    cells: list[tuple[GroupLeakage, Pair, Pair]] = []
    for topic in dict.fromkeys(measured.topics):
        inside = np.flatnonzero(topics == topic)
        if topic is None or len(inside) < FEWEST:
            continue
        for name, values in measured.forget_scores.items():
            forget = values[inside], retrained.forget_scores[name][inside]
            holdout = measured.holdout_scores[name], retrained.holdout_scores[name]
            if (value := _group_leak(forget, holdout)) < _NO_ZERO:
                entry = {"attack": name, "group": topic, "n": len(inside)}
                cells.append((GroupLeakage(**entry, value=value), forget, holdout))
    if not cells:
        return (), None
    worst, forget, holdout = max(cells, key=lambda cell: abs(cell[0].value))
    found = _bounded(estimate(_group_leak, forget, holdout, seed=seed))
    every = tuple(cell for cell, _, _ in cells)
    return every, replace(worst, low=found.low, high=found.high)


def _bounded(found: Estimate) -> Estimate:
    """Without an interval where some draws have no retrained model to compare with."""
    lost = found.high is not None and found.high > _NO_ZERO
    return Estimate(found.value) if lost else found


def _aucs(forget: Pair, holdout: Pair) -> tuple[float, float]:
    mine, theirs = (member_auc(f, h) for f, h in zip(forget, holdout, strict=True))
    return mine, theirs


def _priv_leak(forget: Pair, holdout: Pair) -> float:
    """Percent; huge where the retrained model alone separates perfectly."""
    mine, theirs = _aucs(forget, holdout)
    if theirs == 1:
        return 0.0 if mine == 1 else 2 * _NO_ZERO
    return priv_leak(mine, theirs)


def _group_leak(forget: Pair, holdout: Pair) -> float:
    """Fraction; huge where the retrained model ranks every text below the unseen."""
    mine, theirs = _aucs(forget, holdout)
    if theirs == 0:
        return 0.0 if mine == 0 else 2 * _NO_ZERO
    return privacy_leakage(mine, theirs)


def loss_gap(forget: PerItem, holdout: PerItem, seed: int) -> Estimate:
    """Mean loss of unseen minus forgotten texts, in nats a token, from `loss` scores.

    The score is the mean log-probability: minus the loss.
    """

    def gap(forgotten: np.ndarray, unseen: np.ndarray) -> float:
        return float(np.mean(forgotten) - np.mean(unseen))

    return estimate(gap, forget, holdout, seed=seed)


def finite(value: float) -> float | None:
    """None where it is infinite."""
    return value if math.isfinite(value) else None
