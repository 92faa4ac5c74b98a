"""The numbers behind the figures: ROC bands, empirical distributions, histograms."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from lt_mia_jax.arrays import Float, Int


class RocBand(NamedTuple):
    """A conservative ROC curve at whole counts of false positives, with a band."""

    fpr: Float[np.ndarray, " points"]
    tpr: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]


def roc_band(
    members: Float[np.ndarray, " m"],
    nonmembers: Float[np.ndarray, " n"],
    *,
    seed: int = 0,
    n_boot: int = 200,
    points: int = 90,
) -> RocBand:
    """ROC curve at logarithmically spaced false-positive rates, with a 95 % band.

    At the rate k/n the curve gives the largest true-positive rate of any threshold
    with at most k of n false positives, so ties count against the attack. The band
    is pointwise: members and non-members are resampled separately and the middle
    95 % of the resampled curves is kept.

    Args:
      members: finite scores, higher = more likely a member.
      nonmembers: likewise.
      seed: of the resampling.
      n_boot: number of resamples.
      points: at most so many rates, besides 0.

    Source: B. Efron, Bootstrap Methods (1979), percentile interval; conservative TPR
    as the largest tpr with fpr at most f.
    """
    n, m = len(nonmembers), len(members)
    steps = np.unique(np.round(np.geomspace(1, n, points)).astype(np.int64))
    allowed = np.concatenate([[0], steps])
    negatives = np.sort(nonmembers)[::-1]
    # How many members lie strictly above each non-member: the only thresholds needed.
    above = m - np.searchsorted(np.sort(members), negatives, side="right")
    rng = np.random.default_rng(seed)
    boots = np.stack(
        [
            _tpr(allowed, above, _resample(rng, n), _resample(rng, m))
            for _ in range(n_boot)
        ]
    )
    ones = np.ones
    tpr = _tpr(allowed, above, ones(n, np.int64), ones(m, np.int64))
    low, high = np.quantile(boots, [0.025, 0.975], axis=0)
    return RocBand(allowed / n, tpr, low, high)


def _resample(rng: np.random.Generator, size: int) -> Int[np.ndarray, " size"]:
    """How often each of `size` texts occurs in one resample."""
    return np.bincount(rng.integers(0, size, size), minlength=size)


def _tpr(
    allowed: Int[np.ndarray, " points"],
    above: Int[np.ndarray, " n"],
    negative_counts: Int[np.ndarray, " n"],
    member_counts: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " points"]:
    # The first non-member (from the top) that exceeds the budget sets the threshold.
    first = np.searchsorted(np.cumsum(negative_counts), allowed, side="right")
    caught = np.concatenate([[0], np.cumsum(member_counts)])
    within = first < len(above)
    positives = caught[above[np.minimum(first, len(above) - 1)]]
    return np.where(within, positives, caught[-1]) / caught[-1]


class Histogram(NamedTuple):
    """Shares of each group per bin; the end bins hold what lies beyond."""

    edges: Float[np.ndarray, " bins_plus_one"]
    shares: tuple[Float[np.ndarray, " bins"], ...]
    beyond: int


def histogram(groups: tuple[Float[np.ndarray, " _"], ...], bins: int = 36) -> Histogram:
    """Histograms on common bins, each normalized by the size of its group.

    The range is the middle 99 % of all values, widened to everything when that is no
    more than half as wide again; `beyond` counts the values put into the end bins.
    """
    values = np.concatenate(groups)
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    if values.max() - values.min() <= 1.5 * (high - low):
        low, high = float(values.min()), float(values.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = tuple(
        np.histogram(np.clip(group, low, high), edges)[0] / max(1, len(group))
        for group in groups
    )
    return Histogram(edges, shares, int(((values < low) | (values > high)).sum()))


class Distribution(NamedTuple):
    """An empirical distribution function as a right-continuous staircase."""

    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]


def distribution(values: Float[np.ndarray, " n"], points: int = 250) -> Distribution:
    """Empirical distribution function, thinned to at most `points` steps."""
    x, counts = np.unique(values, return_counts=True)
    y = np.cumsum(counts) / len(values)
    if len(x) > points:
        kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
        x, y = x[kept], y[kept]
    return Distribution(x, y)


def ks_half_width(n_first: int, n_second: int, level: float = 0.95) -> float:
    """Half-width of the Kolmogorov-Smirnov band for two independent samples.

    Conformal p-values of one half of the non-members against the other half vary
    with both halves, so the one-sample band would be too narrow by about sqrt(2).

    Source: two-sample Kolmogorov-Smirnov statistic, effective size n m / (n + m).
    """
    effective = n_first * n_second / (n_first + n_second)
    return float(stats.kstwo.ppf(level, max(1, round(effective))))


def benjamini_hochberg(p_values: Float[np.ndarray, " n"], level: float) -> int:
    """How many hypotheses are rejected at false discovery rate `level`.

    Source: Benjamini and Hochberg (1995); valid for conformal p-values, which are
    positively dependent (Testing for Outliers with Conformal p-values, 2104.08279).
    """
    ordered = np.sort(p_values)
    passing = ordered <= level * np.arange(1, len(ordered) + 1) / len(ordered)
    return int(np.flatnonzero(passing)[-1]) + 1 if passing.any() else 0
