"""What attacks still see: their strength, leakage beside retraining, and by group."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.attacks.metrics import refuses, summarize
from lt_mia_jax.verification.items import Measured, MuseMeasured
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
"""The same score under a model and under the retrained one."""


def attack_results(
    measured: Measured | MuseMeasured,
    retrained: Measured | MuseMeasured | None,
    *,
    leaks: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[dict[str, AttackResult], list[str]]:
    """Every attack on forgotten against unseen texts.

    Args:
      measured: the model.
      retrained: the retrained model, for PrivLeak.
      leaks: attacks with a PrivLeak; None takes all.
      seed: of the bootstrap.

    Returns:
      Results by attack, and why some have no PrivLeak.
    """
    found, perfect = {}, []
    for name, forget in measured.forget_scores.items():
        holdout = measured.holdout_scores[name]
        found[name] = _separation(forget, holdout, seed)
        if retrained is None or (leaks is not None and name not in leaks):
            continue
        theirs = retrained.forget_scores[name], retrained.holdout_scores[name]
        leak = privacy((forget, theirs[0]), (holdout, theirs[1]), seed)
        found[name] = replace(found[name], leak=leak)
        perfect += [name] if leak is None else []
    if not perfect:
        return found, []
    return found, [
        f"No leakage from {', '.join(perfect)}: even the retrained model tells forget "
        "from holdout texts perfectly, so the two sets differ by more than training; "
        "draw them from one source."
    ]


def _separation(forget: PerItem, holdout: PerItem, seed: int) -> AttackResult:
    """AUC of forgotten against unseen texts, and TPR at 1 % where counts allow it."""
    labels = np.repeat([1, 0], [len(forget), len(holdout)])
    found = summarize(labels, np.concatenate([forget, holdout]), seed=seed)
    tpr = TprAtRate(
        **vars(found.tpr[f"{RATE:g}"].conservative),
        rate=RATE,
        refused=refuses(RATE, len(holdout)),
        n_holdout=len(holdout),
    )
    return AttackResult(auc=found.auc, tpr=tpr)


def privacy(forget: Pair, holdout: Pair, seed: int) -> Estimate | None:
    """PrivLeak with its interval; texts are drawn alike for both models.

    None where the retrained model tells the sides apart perfectly; no interval where it
    does so in some of the draws.
    """
    if member_auc(forget[1], holdout[1]) == 1:
        return None
    return _bounded(estimate(_priv_leak, forget, holdout, seed=seed))


def group_leakage(
    measured: Measured, retrained: Measured, seed: int
) -> tuple[tuple[GroupLeakage, ...], GroupLeakage | None]:
    """Leakage of every attack on every topic, and the largest in size.

    A topic needs `FEWEST` texts. Only the largest has an interval; that it was chosen
    biases it upwards, so compare it with that of a second retrained model.

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
                cell = GroupLeakage(
                    value=value, attack=name, group=topic, n=len(inside)
                )
                cells.append((cell, forget, holdout))
    if not cells:
        return (), None
    worst, forget, holdout = max(cells, key=lambda cell: abs(cell[0].value))
    found = _bounded(estimate(_group_leak, forget, holdout, seed=seed))
    every = tuple(cell for cell, _, _ in cells)
    return every, replace(worst, low=found.low, high=found.high)


def _bounded(found: Estimate) -> Estimate:
    """Drop an interval that holds draws without a retrained model to compare with."""
    lost = found.high is not None and found.high > _NO_ZERO
    return Estimate(found.value) if lost else found


def _compared(
    undefined: float, leak: Callable[[float, float], float], forget: Pair, holdout: Pair
) -> float:
    """`leak` of two models' AUCs; huge where only the retrained one is `undefined`."""
    mine, theirs = (member_auc(f, h) for f, h in zip(forget, holdout, strict=True))
    if theirs == undefined:
        return 0.0 if mine == undefined else 2 * _NO_ZERO
    return leak(mine, theirs)


_priv_leak = partial(_compared, 1.0, priv_leak)
_group_leak = partial(_compared, 0.0, privacy_leakage)
