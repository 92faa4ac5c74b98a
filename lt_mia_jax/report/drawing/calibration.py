"""Empirical distributions of p-values against the diagonal."""

from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from scipy import stats

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.drawing import svg


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


def calibration_figure(
    nonmembers: Float[np.ndarray, " n"], suspects: Float[np.ndarray, " m"]
) -> Markup:
    """Empirical distribution of p-values against the diagonal with its KS band.

    Either group may be empty.
    """
    width, height = 460, 430
    x = svg.Scale(0, 1, 56, width - 24)
    y = svg.Scale(0, 1, height - 50, 12)
    ticks = {tick: f"{tick:g}" for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)}
    titles = "p-value", "fraction of texts at or below"
    marks = svg.axes(x, y, height, *titles, x_ticks=ticks, y_ticks=ticks)
    if len(nonmembers):
        half = ks_half_width(len(nonmembers), len(nonmembers))
        corners = [(0, 0), (0, half), (1 - half, 1), (1, 1), (1, 1 - half), (half, 0)]
        points = [f"{svg.pixel(x.at(a))} {svg.pixel(y.at(b))}" for a, b in corners]
        marks.append(svg.mark("M" + "L".join(points) + "Z", "ks"))
    marks.append(svg.rule(x.start, y.start, x.stop, y.stop, "chance"))
    groups = (
        ("held-out non-members", "nonmember", nonmembers),
        ("suspect texts", "member", suspects),
    )
    spoken = []
    for name, css, values in groups:
        if len(values):
            steps = distribution(values)
            columns = np.concatenate([[0], steps.x, [1]])
            heights = np.concatenate([[0], steps.y, steps.y[-1:]])
            path = svg.staircase(x(columns), y(heights))
            marks.append(svg.mark(path, f"curve {css}"))
            below = np.mean(values <= 0.05)
            spoken.append(f"{below:.1%} of {len(values)} {name} at or below 0.05")
    label = "Empirical distribution of p-values against the diagonal: "
    return svg.figure(width, height, marks, f"{label}{', '.join(spoken)}.")
