"""ROC curves on logarithmic axes with bootstrap bands."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.wording import percent


class Sides(NamedTuple):
    """Finite scores of the two groups of texts behind one curve."""

    name: str
    css: str
    members: Float[np.ndarray, " m"]
    nonmembers: Float[np.ndarray, " n"]


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
    95 % of the resampled curves is kept. There are at most `points` rates besides 0.

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
    boots = [
        _tpr(allowed, above, _resample(rng, n), _resample(rng, m))
        for _ in range(n_boot)
    ]
    tpr = _tpr(allowed, above, np.ones(n, np.int64), np.ones(m, np.int64))
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


def roc_figure(sides: Sequence[Sides], title: str, caption: str) -> svg.Figure:
    """ROC curves on log-log axes with bootstrap bands; the first curve leads.

    The shaded strip on the left is where fewer than ten false positives decide, so
    that a rate read off there is not quoted in the table.
    """
    width, height = 460, 430
    n_nonmembers = max(len(each.nonmembers) for each in sides)
    # A little left of one false positive; zero of them is drawn at the edge.
    low = min(0.1, 0.6 / n_nonmembers)
    x = svg.Scale(low, 1, 62, width - 24, log=True)
    y = svg.Scale(low, 1, height - 50, 12, log=True)
    marks = []
    unsure = min(1.0, 10 / n_nonmembers)
    if unsure > low:
        left, right = x.at(low), x.at(unsure)
        corners = f"M{left:g} {y.stop:g}H{right:.1f}V{y.start:g}H{left:g}Z"
        marks.append(svg.mark(corners, "unsure"))
        if right - left > 90:
            remark = "< 10 false positives"
            marks.append(svg.text(left + 6, y.stop + 15, remark, "remark"))
    ticks = {tick: percent(tick) for tick in svg.decade_ticks(low, 1)}
    titles = "false-positive rate", "true-positive rate"
    marks += svg.axes(x, y, height, *titles, x_ticks=ticks, y_ticks=ticks)
    marks.append(svg.rule(x.start, y.start, x.stop, y.stop, "chance"))
    styled = [(e.css, roc_band(e.members, e.nonmembers)) for e in sides[::-1]]
    for css, curve in styled:
        area = svg.band(x(curve.fpr), y(curve.low), y(curve.high))
        marks.append(svg.mark(area, f"band {css}"))
    for css, curve in styled:
        steps = svg.staircase(x(curve.fpr), y(curve.tpr))
        marks.append(svg.mark(steps, f"curve {css}"))
    drawn = svg.figure(
        width,
        height,
        marks,
        f"ROC curves on logarithmic axes with 95 % bootstrap bands: "
        f"{', '.join(each.name for each in sides)}; the diagonal is chance. The attack "
        "table has the same results as numbers.",
    )
    key = [*((f"curve {each.css}", each.name) for each in sides), ("chance", "chance")]
    return svg.Figure(drawn, key, title, caption, tall=True)
