"""Histograms of scores and losses by group of texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.wording import percent, plural


class Group(NamedTuple):
    """Values of one group of texts and the CSS class that colors them."""

    name: str
    css: str
    values: Float[np.ndarray, " n"]


class Histogram(NamedTuple):
    """Fractions of each group per bin; the end bins hold what lies beyond."""

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


def histogram_figure(
    groups: Sequence[Group], axis: str, title: str, caption: str, *, means: bool = False
) -> svg.Figure:
    """Histograms of groups on common bins, as fractions of each group.

    The groups have no NaN and are not empty; `means` marks the mean of each.
    """
    width, height = 460, 205
    data = histogram(tuple(group.values for group in groups))
    highest = max(float(shares.max()) for shares in data.shares)
    x = svg.Scale(float(data.edges[0]), float(data.edges[-1]), 46, width - 24)
    y = svg.Scale(0, highest * 1.08, height - 46, 12)
    ticks = {tick: percent(tick) for tick in svg.nice_ticks(0, highest, about=3)}
    marks = svg.axes(x, y, height, axis, y_ticks=ticks, vertical=False)
    edges = x(data.edges)
    for group, shares in zip(groups, data.shares, strict=True):
        # From the floor up at the first edge, and back down at the last.
        heights = y(np.concatenate([[0], shares, [0]]))
        outline = svg.staircase(np.concatenate([edges[:1], edges]), heights)
        marks.append(svg.mark(outline + "Z", f"fill {group.css}"))
        marks.append(svg.mark(outline, f"outline {group.css}"))
    for group in groups if means else ():
        place = x.at(group.values.mean())
        marks.append(svg.rule(place, y.start, place, y.stop, f"mean {group.css}"))
    marks.append(svg.rule(x.start, y.start, x.stop, y.start, "tick"))
    spoken = " and ".join(
        f"{len(group.values)} {group.name} (median {np.median(group.values):.3g})"
        for group in groups
    )
    label = f"Histogram over {axis}: {spoken}."
    key = [(f"outline {group.css}", group.name) for group in groups[::-1]]
    if data.beyond:
        caption += (
            f" The end bins also hold {plural(data.beyond, 'more extreme text')}."
        )
    drawn = svg.figure(width, height, marks, label)
    return svg.Figure(drawn, key if len(key) > 1 else [], title, caption)
