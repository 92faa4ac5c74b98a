"""The figures of the report: ROC, score histograms, calibration, tiny intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.drawing.curves import (
    RocBand,
    distribution,
    histogram,
    ks_half_width,
)
from lt_mia_jax.report.schema import Number

CURVES = ("lead", "second", "third", "fourth")
"""CSS classes of the curves of one ROC figure, the learned attack first."""


class Group(NamedTuple):
    """Values of one group of texts and the CSS class that colors them."""

    name: str
    css: str
    values: Float[np.ndarray, " n"]


def roc_figure(curves: Mapping[str, RocBand], n_nonmembers: int) -> Markup:
    """ROC curves on log-log axes with bootstrap bands; the first curve leads.

    The shaded strip on the left is where fewer than ten false positives decide, so
    that a rate read off there is not quoted in the table.
    """
    width, height = 460, 430
    # A little left of one false positive; zero of them is drawn at the edge.
    low = min(0.1, 0.6 / n_nonmembers)
    x = svg.Scale(low, 1, 62, width - 24, log=True)
    y = svg.Scale(low, 1, height - 50, 12, log=True)
    marks = []
    unsure = min(1.0, 10 / n_nonmembers)
    if unsure > low:
        left, right = x.at(low), x.at(unsure)
        top, bottom = y.stop, y.start
        corners = f"M{left:g} {top:g}H{right:.1f}V{bottom:g}H{left:g}Z"
        marks.append(svg.mark(corners, "unsure"))
        if right - left > 90:
            marks.append(svg.text(left + 6, top + 15, "< 10 false positives", "remark"))
    for tick in svg.decade_ticks(low, 1):
        a, b = x.at(tick), y.at(tick)
        marks += [
            svg.rule(a, y.start, a, y.stop, "grid"),
            svg.rule(x.start, b, x.stop, b, "grid"),
            svg.text(a, y.start + 18, percent(tick), anchor="middle"),
            svg.text(x.start - 8, b + 4, percent(tick), anchor="end"),
        ]
    marks.append(svg.rule(x.start, y.start, x.stop, y.stop, "chance"))
    styled = list(zip(CURVES, curves.values(), strict=False))
    for css, curve in reversed(styled):
        marks.append(
            svg.mark(svg.band(x(curve.fpr), y(curve.low), y(curve.high)), f"band {css}")
        )
    for css, curve in reversed(styled):
        marks.append(
            svg.mark(svg.staircase(x(curve.fpr), y(curve.tpr)), f"curve {css}")
        )
    marks += [
        svg.text(
            (x.start + x.stop) / 2,
            height - 8,
            "false-positive rate",
            "title",
            anchor="middle",
        ),
        svg.upright(14, (y.start + y.stop) / 2, "true-positive rate"),
    ]
    spoken = ", ".join(curves)
    return svg.figure(
        width,
        height,
        marks,
        f"ROC curves on logarithmic axes with 95 % bootstrap bands: {spoken}; the "
        "diagonal is chance. The attack table has the same results as numbers.",
    )


def histogram_figure(
    groups: Sequence[Group], axis: str, *, means: bool = False
) -> tuple[Markup, int]:
    """Histograms of one or two groups on common bins, as shares of each group.

    Args:
      groups: without NaN, none empty.
      axis: the name of the horizontal axis.
      means: mark each group's mean.

    Returns:
      The figure and the number of values beyond its range (in the end bins).
    """
    width, height = 460, 205
    data = histogram(tuple(group.values for group in groups))
    highest = max(float(shares.max()) for shares in data.shares)
    x = svg.Scale(float(data.edges[0]), float(data.edges[-1]), 46, width - 24)
    y = svg.Scale(0, highest * 1.08, height - 46, 12)
    marks = []
    for tick in svg.nice_ticks(0, highest, about=3):
        level = y.at(tick)
        marks += [
            svg.rule(x.start, level, x.stop, level, "grid"),
            svg.text(x.start - 8, level + 4, percent(tick), anchor="end"),
        ]
    for tick in svg.nice_ticks(x.low, x.high):
        place = x.at(tick)
        marks.append(svg.rule(place, y.start, place, y.start + 4, "tick"))
        marks.append(
            svg.text(place, y.start + 18, svg.label_number(tick), anchor="middle")
        )
    for group, shares in zip(groups, data.shares, strict=True):
        edges = x(data.edges)
        # From the floor up at the first edge, and back down at the last.
        heights = y(np.concatenate([[0], shares, [0]]))
        columns = np.concatenate([edges[:1], edges])
        outline = svg.staircase(columns, heights)
        marks.append(svg.mark(outline + "Z", f"fill {group.css}"))
        marks.append(svg.mark(outline, f"outline {group.css}"))
    if means:
        for group in groups:
            place = x.at(group.values.mean())
            marks.append(svg.rule(place, y.start, place, y.stop, f"mean {group.css}"))
    marks.append(svg.rule(x.start, y.start, x.stop, y.start, "tick"))
    marks.append(
        svg.text((x.start + x.stop) / 2, height - 8, axis, "title", anchor="middle")
    )
    spoken = " and ".join(
        f"{len(group.values)} {group.name} (median {np.median(group.values):.3g})"
        for group in groups
    )
    label = f"Histogram over {axis}: {spoken}."
    return svg.figure(width, height, marks, label), data.beyond


def calibration_figure(
    nonmembers: Float[np.ndarray, " n"], suspects: Float[np.ndarray, " m"]
) -> Markup:
    """Empirical distribution of p-values against the diagonal with its KS band.

    Either group may be empty.
    """
    width, height = 460, 430
    x = svg.Scale(0, 1, 56, width - 24)
    y = svg.Scale(0, 1, height - 50, 12)
    marks = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        a, b = x.at(tick), y.at(tick)
        marks += [
            svg.rule(a, y.start, a, y.stop, "grid"),
            svg.rule(x.start, b, x.stop, b, "grid"),
            svg.text(a, y.start + 18, f"{tick:g}", anchor="middle"),
            svg.text(x.start - 8, b + 4, f"{tick:g}", anchor="end"),
        ]
    if len(nonmembers):
        half = ks_half_width(len(nonmembers), len(nonmembers))
        corners = [(0, 0), (0, half), (1 - half, 1), (1, 1), (1, 1 - half), (half, 0)]
        points = [(svg.pixel(x.at(a)), svg.pixel(y.at(b))) for a, b in corners]
        marks.append(
            svg.mark("M" + "L".join(f"{a} {b}" for a, b in points) + "Z", "ks")
        )
    marks.append(svg.rule(x.start, y.start, x.stop, y.stop, "chance"))
    for css, values in (("nonmember", nonmembers), ("member", suspects)):
        if len(values):
            steps = distribution(values)
            columns = np.concatenate([[0], steps.x, [1]])
            heights = np.concatenate([[0], steps.y, steps.y[-1:]])
            marks.append(
                svg.mark(svg.staircase(x(columns), y(heights)), f"curve {css}")
            )
    marks += [
        svg.text(
            (x.start + x.stop) / 2, height - 8, "p-value", "title", anchor="middle"
        ),
        svg.upright(14, (y.start + y.stop) / 2, "share of texts at or below"),
    ]
    below = ", ".join(
        f"{np.mean(values <= 0.05):.1%} of {len(values)} {name} at or below 0.05"
        for name, values in (
            ("held-out non-members", nonmembers),
            ("suspect texts", suspects),
        )
        if len(values)
    )
    return svg.figure(
        width,
        height,
        marks,
        f"Empirical distribution of p-values against the diagonal: {below}.",
    )


def interval_figure(
    value: Number | None,
    low: Number | None,
    high: Number | None,
    *,
    span: tuple[Number, Number],
    origin: Number,
) -> Markup:
    """A dot with its interval on a shared scale, as small as a word.

    It only repeats numbers that stand beside it, so it is hidden from screen readers.
    """
    if value is None:
        return Markup("")
    x = svg.Scale(*span, 4, 92)
    marks = [
        svg.rule(x.start, 8, x.stop, 8, "track"),
        svg.rule(x.at(origin), 1, x.at(origin), 15, "origin"),
    ]
    if low is not None and high is not None:
        marks.append(svg.rule(x.at(low), 8, x.at(high), 8, "whisker"))
    marks.append(
        Markup('<circle class="dot" cx="{}" cy="8" r="2.6"/>').format(
            svg.pixel(x.at(value))
        )
    )
    return Markup(
        '<svg class="interval" viewBox="0 0 96 16" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(marks))


def percent(rate: Number) -> str:
    """A tick label in per cent, such as 0.1 %."""
    return f"{100 * rate:.4g}\N{NO-BREAK SPACE}%"
