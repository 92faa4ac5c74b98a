"""Leakage against a retrained model: per attack, per group and per item.

The retrained model is the zero of every measure: a model whose forget items look less
familiar than to the retrained one leaks as well, so signs are kept.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import (
    PerItem,
    Values,
    number,
    per_item,
    same_items,
)

DELTA = 1e-5
"""Of the (epsilon, delta) score."""
_LEAST_RATE = 1e-10  # an error rate of 0 counts as this, as in the reference
_EULER = 0.5772  # the rounded constant of the reference


def privacy_leakage(auc_unlearned: float, auc_retrained: float) -> float:
    """`PL = (AUC_u - AUC_r) / AUC_r` of one attack on one group, sign kept.

    Positive: under-unlearned; negative: over-unlearned. AUC of forget items (members,
    higher scores) against holdout items.

    Raises:
      InputError: a retrained AUC of 0.

    Source: Underestimated Privacy Risks for Minority Populations in Large Language
    Model Unlearning, arXiv 2412.08559.
    """
    ours = number("auc_unlearned", auc_unlearned, low=0.0, high=1.0)
    theirs = number("auc_retrained", auc_retrained, low=0.0, high=1.0)
    if theirs == 0:
        raise InputError(
            "the retrained model has AUC 0; expected more: check that higher scores "
            "mean member"
        )
    return (ours - theirs) / theirs


def epsilon(
    fpr: Float[np.ndarray, "..."], fnr: Float[np.ndarray, "..."], delta: float = DELTA
) -> Float[np.ndarray, "..."]:
    """Smallest epsilon that an attack with these error rates is compatible with.

    `min(log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR)`, at least 0;
    0 where a rate reaches `1 - delta` (the attack says the same of everything),
    infinite where both are 0.

    Source: Unlearning Comparator, arXiv 2508.12730 (formula of its code); Triantafillou
    et al., arXiv 2406.09073.
    """
    trivial = (fpr >= 1 - delta) | (fnr >= 1 - delta)
    p = np.clip(fpr, _LEAST_RATE, 1 - delta - _LEAST_RATE)
    n = np.clip(fnr, _LEAST_RATE, 1 - delta - _LEAST_RATE)
    first = np.log(1 - delta - p) - np.log(n)
    second = np.log(1 - delta - n) - np.log(p)
    found = np.where(trivial, 0.0, np.maximum(0.0, np.minimum(first, second)))
    return np.where((fpr == 0) & (fnr == 0), np.inf, found)


class ThresholdAttack(NamedTuple):
    """The best threshold at telling an unlearned model from a retrained one."""

    epsilon: float
    attack_score: float
    """`1 - 2^-epsilon`: 0 no attack works, 1 the models are told apart perfectly."""
    threshold: float
    positive: Literal["unlearned", "retrained"]
    """Whose scores lie at or above the threshold."""
    fpr: float
    fnr: float


def threshold_attack(
    unlearned: Values,
    retrained: Values,
    *,
    thresholds: Values | None = None,
    delta: float = DELTA,
) -> ThresholdAttack:
    """The threshold on a per-item signal with the largest epsilon, in both directions.

    The choice among thresholds lifts epsilon above 0 even between two equal models;
    compare with the value of two retrained models.

    Args:
      unlearned: a signal of the forget items under the unlearned model (confidence,
        entropy, or a membership score).
      retrained: the same signal under the retrained model.
      thresholds: None tries every value that occurs; the authors take 51 evenly spaced
        ones.
      delta: of the score.

    Source: Unlearning Comparator, arXiv 2508.12730.
    """
    ours = np.sort(per_item("signal of the unlearned model", unlearned))
    theirs = np.sort(per_item("signal of the retrained model", retrained))
    if thresholds is None:
        cuts = np.unique(np.concatenate([ours, theirs]))
    else:
        cuts = per_item("thresholds", thresholds)
    above, beyond = (
        1 - np.searchsorted(side, cuts, side="left") / len(side)
        for side in (ours, theirs)
    )

    def best(
        fpr: PerItem, fnr: PerItem, positive: Literal["unlearned", "retrained"]
    ) -> ThresholdAttack:
        values = epsilon(fpr, fnr, delta)
        i = int(values.argmax())
        found, cut = float(values[i]), float(cuts[i])
        rates = float(fpr[i]), float(fnr[i])
        return ThresholdAttack(found, 1 - 2.0**-found, cut, positive, *rates)

    attacks = (
        best(beyond, 1 - above, "unlearned"),
        best(above, 1 - beyond, "retrained"),
    )
    return max(attacks, key=lambda attack: attack.epsilon)


def fitting_signal(
    probability: Values, *, eps1: float = 1e-2, eps2: float = 1e-5
) -> PerItem:
    """`r(p) = -log(eps1 - log(eps2 + p))`, increasing in p.

    `eps1`, which must exceed log(1 + eps2), keeps the signal finite at p = 1; `eps2`
    keeps it finite at p = 0.

    Source: Towards Lifecycle Unlearning Commitment Management (IAM), arXiv 2506.06112.
    Its language model script passes 1 - p instead, which turns the signal round.
    """
    p = per_item("probability", probability, low=0.0, high=1.0)
    if eps2 <= 0 or eps1 <= math.log1p(eps2):
        raise InputError(
            f"eps1 = {eps1} and eps2 = {eps2}; expected eps2 > 0 and eps1 > "
            "log(1 + eps2)"
        )
    return -np.log(eps1 - np.log(eps2 + p))


class Completeness(NamedTuple):
    """How completely each item was unlearned."""

    score: PerItem
    """1 = nothing of the fit is left (over-unlearning too), 0 = as fitted."""
    gap: PerItem
    """`r_unlearned - mean r_shadow`: negative where over-unlearned."""


def unlearning_completeness(
    unlearned: Values,
    original: Values | None,
    shadows: Float[np.ndarray | Array, "S _"],
    *,
    steps: int = 100,
    pooled: bool | None = None,
    eps1: float = 1e-2,
    eps2: float = 1e-5,
) -> Completeness:
    """IAM: where each item stands between models that generalize and one that fits.

    The signals of the shadow models are moved towards that of the original model in
    `steps` parts `a_t`; at each a Gumbel distribution is fitted by moments. The score
    is one minus the mean of the distribution functions at the unlearned signal,
    weighted by `a_{t+1}`.

    Args:
      unlearned: probability of each item's true answer after unlearning.
      original: under the model that was trained on it; None takes a perfect fit, p = 1.
      shadows: under S models that were not trained on it.
      steps: points of the interpolation, its end excluded from the fits.
      pooled: one deviation a step for all items (over shadows and items) instead of one
        an item. None pools when S = 1, where nothing else is possible.
      eps1: of `fitting_signal`; 1e-1 for small tables.
      eps2: of `fitting_signal`; 1e-6 for small tables.

    Raises:
      InputError: fewer than 2 steps, or a single value, which has no deviation.

    Source: Towards Lifecycle Unlearning Commitment Management: Measuring Sample-level
    Unlearning Completeness, arXiv 2506.06112, and the authors' code.
    """
    table = per_item("probability under shadow models", shadows, ndim=2)
    ours = fitting_signal(unlearned, eps1=eps1, eps2=eps2)
    start = np.stack([fitting_signal(row, eps1=eps1, eps2=eps2) for row in table])
    full = np.ones(len(ours)) if original is None else original
    end = fitting_signal(full, eps1=eps1, eps2=eps2)
    same_items(unlearned=ours, original=end, shadows=start[0])
    if steps < 2:
        raise InputError(f"steps is {steps}; expected at least 2")
    pooled = len(start) == 1 if pooled is None else pooled
    if start.size == 1 or (len(start) == 1 and not pooled):
        raise InputError(
            f"{len(start)} shadow model and {len(ours)} items, pooled={pooled}: no "
            "deviation can be taken; give at least two shadow models, or pool over at "
            "least two items"
        )
    a = np.linspace(0, 1, steps)
    moved = start + a[:-1, None, None] * (end - start)[None]  # steps, shadows, items
    axes = (1, 2) if pooled else 1
    deviation = np.maximum(moved.std(axis=axes, keepdims=pooled), 1e-10)
    scale = math.sqrt(6) * (deviation[:, 0] if pooled else deviation) / math.pi
    location = moved.mean(axis=1) - _EULER * scale
    with np.errstate(over="ignore"):
        below = np.exp(-np.exp(-(ours[None] - location) / scale))
    weight = a[1:, None]
    score = 1 - (weight * below).sum(axis=0) / weight.sum()
    return Completeness(score, ours - start.mean(axis=0))
