"""Truth ratio, model utility and forget quality, the metrics of TOFU.

Mean -log p values are per token, as `memorization.mean_nll` gives them.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln
from scipy.stats import ks_2samp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import (
    PerItem,
    Values,
    number,
    per_item,
    same_items,
)
from lt_mia_jax.verification.records import ForgetQuality

Alternatives = Float[np.ndarray | Array, "_ K"]

UTILITY_SETS = ("retain", "real_authors", "world_facts")
"""Item sets of model utility."""

UTILITY_PARTS = tuple(
    f"{items}/{metric}"
    for items in UTILITY_SETS
    for metric in ("probability", "rouge_recall", "truth_ratio")
)
"""The nine numbers whose harmonic mean is model utility."""

_TINY = 1e-10  # of the reference implementations, against division by zero
_LEAST_NLL = -1e-4  # rounding; below it somebody passed log-probabilities


def truth_ratio(correct_nll: Values, wrong_nll: Alternatives) -> PerItem:
    """`R = exp(-mean_k A_wrong) / (exp(-A_correct) + 1e-10)` of each item.

    Below 1 where the model prefers the truth. The mean over wrong answers is geometric,
    as in most places of the authors' code (one of them takes the arithmetic mean).

    `correct_nll` is A of the paraphrased true answer (of the original one in sets that
    have no paraphrase: real authors, world facts), `wrong_nll` of the K wrong answers.

    Source: TOFU, arXiv 2401.06121, equation 1; OpenUnlearning, arXiv 2506.12618.
    """
    correct = per_item("correct_nll", correct_nll, low=_LEAST_NLL)
    wrong = per_item("wrong_nll", wrong_nll, low=_LEAST_NLL, ndim=2)
    same_items(correct_nll=correct, wrong_nll=wrong)
    return np.exp(-wrong.mean(axis=1)) / (np.exp(-correct) + _TINY)


def forget_truth_score(ratio: Values) -> PerItem:
    """`min(R, 1 / R)` of each item; its mean is the aggregate on the forget set.

    1 where truth and wrong answers are equally likely.

    Source: OpenUnlearning, arXiv 2506.12618.
    """
    found = per_item("truth ratio", ratio, low=0.0)
    with np.errstate(divide="ignore"):
        return np.minimum(found, 1 / found)


def retain_truth_score(ratio: Values) -> PerItem:
    """`max(0, 1 - R)` of each item; its mean is the aggregate on retained sets.

    Source: TOFU, arXiv 2401.06121, section 2.2.
    """
    return np.maximum(0, 1 - per_item("truth ratio", ratio, low=0.0))


def normalized_probability(
    probability: Values, wrong_probability: Alternatives
) -> PerItem:
    """`p / (p + sum_k p_k + 1e-10)` of each item, over the wrong options.

    Source: TOFU, arXiv 2401.06121, section 2.2 (real authors and world facts).
    """
    true = per_item("probability", probability, low=0.0, high=1.0)
    wrong = per_item("wrong_probability", wrong_probability, low=0.0, high=1.0, ndim=2)
    same_items(probability=true, wrong_probability=wrong)
    return true / (true + wrong.sum(axis=1) + _TINY)


class UtilityItems(NamedTuple):
    """Values of the items of one set of model utility."""

    probability: PerItem
    """Plain on the retain set, `normalized_probability` on the other two."""
    rouge_recall: PerItem
    truth_ratio: PerItem
    """R itself."""


def utility_columns(sets: Mapping[str, UtilityItems]) -> dict[str, PerItem]:
    """Values `[N]` behind each of `UTILITY_PARTS`, from those of three sets.

    Raises:
      InputError: a set is missing or unknown.
    """
    _same_names("sets of model utility", sets, UTILITY_SETS)
    columns = []
    for name in UTILITY_SETS:
        items = sets[name]
        columns += [
            per_item(f"{name} probability", items.probability),
            per_item(f"{name} rouge_recall", items.rouge_recall),
            retain_truth_score(items.truth_ratio),
        ]
    return dict(zip(UTILITY_PARTS, columns, strict=True))


def utility_parts(sets: Mapping[str, UtilityItems]) -> dict[str, float]:
    """The nine means by name of `UTILITY_PARTS`; arguments as `utility_columns`."""
    columns = utility_columns(sets)
    return {name: float(column.mean()) for name, column in columns.items()}


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of the nine numbers of `UTILITY_PARTS`; 0 if any of them is 0.

    Raises:
      InputError: a part is missing or unknown.

    Source: TOFU, arXiv 2401.06121, section 2.2.
    """
    _same_names("parts of model utility", parts, UTILITY_PARTS)
    values = [number(name, parts[name], low=0.0, high=1.0) for name in UTILITY_PARTS]
    if min(values) == 0:
        return 0.0
    return len(values) / math.fsum(1 / value for value in values)


def forget_quality(unlearned: Values, retrained: Values) -> ForgetQuality:
    """Whether truth ratios on the forget set tell a model from the retrained one.

    A large p is no evidence of equality, which `equivalence` tests. Compares R of the
    forget items under the unlearned model and under the one trained without them. The
    test reads ranks only: R and 1 / R give the same result. With ties the exact p is
    conservative. Power grows with the number of items; use at least 80, and never read
    it alone: an over-unlearned model can pass on few items.

    Source: TOFU, arXiv 2401.06121, section 2.2; exact null distribution as in SciPy
    (Hodges 1958).
    """
    a = per_item("truth ratio of the unlearned model", unlearned, low=0.0)
    b = per_item("truth ratio of the retrained model", retrained, low=0.0)
    with warnings.catch_warnings(record=True) as inexact:
        warnings.simplefilter("always", RuntimeWarning)
        test: Any = ks_2samp(a, b, method="exact")  # Any: the stub hides its fields
    p, distance = float(test.pvalue), float(test.statistic)
    if inexact:  # SciPy's p came out above 1 by rounding, and it took a limit instead
        p = min(1.0, math.exp(_log_p_value(len(a), len(b), distance)))
    floor = min(0.0, math.log(2) - _log_binomial(len(a) + len(b), len(a)))
    # Below the normal range floats lose digits and then become 0.
    tiny = p < float(np.finfo(np.float64).tiny)
    log_p = _log_p_value(len(a), len(b), distance) if tiny else math.log(p)
    log10, sizes = log_p / math.log(10), (len(a), len(b))
    note = (
        f"disjoint samples: log10 p = {log10:.1f} is the floor for n = {sizes[0]} and "
        f"{sizes[1]}, not a degree"
    )
    return ForgetQuality(
        value=p,
        log10=log10,
        distance=distance,
        n=sizes,
        log10_floor=floor / math.log(10),
        note=note if distance == 1 else "",
    )


def _same_names(
    what: str, found: Mapping[str, object], expected: tuple[str, ...]
) -> None:
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise InputError(
            f"{what}: missing {missing}, unknown {unknown}; expected {list(expected)}"
        )


def _log_binomial(n: Any, k: Any) -> Any:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _log_p_value(n: int, m: int, distance: float) -> float:
    """Log P(D >= distance), by counting the merged orders of both samples.

    An order of n + m values is a lattice path from (0, 0) to (n, m); D is reached where
    |x / n - y / m| is. Reached points have all their paths counted; the others sum
    those of their two predecessors.
    """
    limit = round(distance * n * m)
    y = np.arange(m + 1)
    reaching = np.full(m + 1, -np.inf)
    for x in range(n + 1):
        reached = abs(x * m - y * n) >= limit
        everything = _log_binomial(x + y, y)  # kept where D is reached
        inside = np.flatnonzero(~reached)
        if inside.size:
            low, high = inside[0], inside[-1] + 1
            below = everything[low - 1] if low else -np.inf
            steps = np.concatenate([[below], reaching[low:high]])
            everything[low:high] = np.logaddexp.accumulate(steps)[1:]
        reaching = everything
    return float(reaching[m] - _log_binomial(n + m, m))
