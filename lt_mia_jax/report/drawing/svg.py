"""Small inline SVG: scales, ticks, thin paths. Colors come from the page's CSS.

Written by hand because a chart here is a dozen marks: the result is a few kilobytes,
follows the light and dark palette through CSS classes, keeps its text as text, and is
the same bytes each time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.wording import Number, signed


class Scale(NamedTuple):
    """A map from data to pixels, linear or logarithmic, clipped to its range."""

    low: Number
    high: Number
    start: Number
    stop: Number
    log: bool = False

    def __call__(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Pixels of `values`; what lies outside the range lands on its edge."""
        inside = np.clip(values, self.low, self.high)
        low, high = self.low, self.high
        if self.log:
            inside, low, high = np.log10(inside), math.log10(low), math.log10(high)
        return self.start + (inside - low) / (high - low) * (self.stop - self.start)

    def at(self, value: Number) -> float:
        """The pixel of one value."""
        return float(self(np.array([value], float))[0])


class Figure(NamedTuple):
    """A drawing with its key and caption."""

    svg: Markup
    key: list[tuple[str, str]]
    """CSS class and text of each entry."""
    title: str
    caption: str
    tall: bool = False
    """Stands beside two others."""


def decade_ticks(low: Number, high: Number) -> list[float]:
    """The powers of ten from `low` to `high`."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**exponent for exponent in range(first, last + 1)]


def nice_ticks(low: Number, high: Number, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between `low` and `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda unit: abs(unit * power - rough)) * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def label_number(value: Number) -> str:
    """A tick label: plain up to five digits, otherwise a power of ten."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        return signed(f"{value:.6g}")
    mantissa, exponent = f"{value:.1e}".split("e")
    return signed(f"{mantissa.removesuffix('.0')}e{int(exponent)}")


def pixel(value: Number) -> str:
    """A coordinate with one decimal, without trailing zeros."""
    return f"{round(float(value), 1):g}"


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """Path data of a polyline through pixel coordinates."""
    points = [f"{pixel(a)} {pixel(b)}" for a, b in zip(x, y, strict=True)]
    return "M" + "L".join(points)


def staircase(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """Path data of right-continuous steps: across at the old height, then up."""
    data = [f"M{pixel(x[0])} {pixel(y[0])}"]
    height, column = pixel(y[0]), pixel(x[0])
    for a, b in zip(x[1:], y[1:], strict=True):
        if pixel(b) != height:
            column, height = pixel(a), pixel(b)
            data.append(f"H{column}V{height}")
    if pixel(x[-1]) != column:
        data.append(f"H{pixel(x[-1])}")
    return "".join(data)


def band(
    x: Float[np.ndarray, " n"],
    low: Float[np.ndarray, " n"],
    high: Float[np.ndarray, " n"],
) -> str:
    """Path data of the area between two staircases over the same columns."""
    # The way back mirrors the steps: at each column the height changes first.
    back = [f"L{pixel(x[-1])} {pixel(low[-1])}"]
    height = pixel(low[-1])
    for index in range(len(x) - 1, 0, -1):
        if pixel(low[index - 1]) != height:
            height = pixel(low[index - 1])
            back.append(f"H{pixel(x[index])}V{height}")
    back.append(f"H{pixel(x[0])}")
    return staircase(x, high) + "".join(back) + "Z"


def mark(data: str, css: str) -> Markup:
    """One path with a CSS class."""
    return Markup('<path class="{}" d="{}"/>').format(css, data)


def rule(x1: Number, y1: Number, x2: Number, y2: Number, css: str) -> Markup:
    """One straight line with a CSS class."""
    data = f"M{pixel(x1)} {pixel(y1)}L{pixel(x2)} {pixel(y2)}"
    return mark(data, css)


def text(
    x: Number, y: Number, content: str, css: str = "", *, anchor: str = "start"
) -> Markup:
    """One escaped text, anchored at start, middle or end."""
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        pixel(x), pixel(y), anchor, css, content
    )


def upright(x: Number, y: Number, content: str, css: str = "title") -> Markup:
    """A text turned by 90 degrees, centered at (x, y), for the vertical axis."""
    return Markup(
        '<text transform="translate({} {}) rotate(-90)" text-anchor="middle" '
        'class="{}">{}</text>'
    ).format(pixel(x), pixel(y), css, content)


def dot(x: Number, y: Number, css: str, radius: Number) -> Markup:
    """One circle with a CSS class."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(
        css, pixel(x), pixel(y), pixel(radius)
    )


def axes(
    x: Scale,
    y: Scale,
    height: int,
    x_label: str,
    y_label: str = "",
    *,
    x_ticks: Mapping[Number, str] | None = None,
    y_ticks: Mapping[Number, str] | None = None,
    vertical: bool = True,
) -> list[Markup]:
    """Grid lines with labels, and the titles of both axes.

    Ticks are labels by value, round numbers where None. Lines at `x_ticks` cross the
    figure if `vertical`, and else stand below it, at whose foot `x_label` stands.
    """
    marks = []
    stop, css = (y.stop, "grid") if vertical else (y.start + 4, "tick")
    for tick, label in (_rounded(x) if x_ticks is None else x_ticks).items():
        place = x.at(tick)
        marks.append(rule(place, y.start, place, stop, css))
        marks.append(text(place, y.start + 18, label, anchor="middle"))
    for tick, label in (_rounded(y) if y_ticks is None else y_ticks).items():
        level = y.at(tick)
        marks.append(rule(x.start, level, x.stop, level, "grid"))
        marks.append(text(x.start - 8, level + 4, label, anchor="end"))
    middle = (x.start + x.stop) / 2
    marks.append(text(middle, height - 8, x_label, "title", anchor="middle"))
    if y_label:
        marks.append(upright(14, (y.start + y.stop) / 2, y_label))
    return marks


def _rounded(scale: Scale) -> dict[Number, str]:
    return {t: label_number(t) for t in nice_ticks(scale.low, scale.high)}


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with some room at both ends, never empty."""
    room = (high - low) * share if high > low else max(abs(high), 1.0) * share
    return low - room, high + room


def figure(width: int, height: int, marks: Sequence[Markup], label: str) -> Markup:
    """An `<svg>` element that scales with its container and has a spoken label."""
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, escape(label), Markup("").join(marks))
