"""The figures of unlearning: Pareto plot, curves, texts in the plane."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.schema import Number

CHARACTER = 6.4
"""Width of a letter of a label, about; labels keep clear of each other by it."""
Box = tuple[Number, Number, Number, Number]
"""Left, top, right and bottom, in pixels."""
PARETO = (720, 430)
"""Width and height of the Pareto plot, in pixels."""
DEEPEST = -40.0
"""Forget quality below this is drawn here: log10 p has no lower end."""


class Figure(NamedTuple):
    """A figure with its key and caption."""

    svg: Markup
    key: list[tuple[str, str]]
    """CSS class and text."""
    title: str
    caption: str
    tall: bool = False
    """Stands beside two others."""


class Spot(NamedTuple):
    """One result in the Pareto plot."""

    name: str
    kind: str
    """CSS class: control, even, over, leaks or plain."""
    x: float
    y: float
    low: float | None = None
    """Ends of the interval of x."""
    high: float | None = None


class Line(NamedTuple):
    """One curve."""

    name: str
    css: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


def front(spots: Sequence[Spot]) -> list[Spot]:
    """Spots that no other one beats in both directions, from left to right."""
    best = [
        spot
        for spot in spots
        if not any(
            other.x >= spot.x
            and other.y >= spot.y
            and (other.x > spot.x or other.y > spot.y)
            for other in spots
        )
    ]
    return sorted(best, key=lambda spot: (spot.x, -spot.y))


def pareto_figure(
    spots: Sequence[Spot],
    *,
    x_label: str,
    y_label: str,
    passing: float | None = None,
) -> Markup:
    """Utility to the right, forgetting upwards; the best results are joined.

    Args:
      spots: results; those of kind "control" are not joined.
      x_label: name of the horizontal axis.
      y_label: name of the vertical axis.
      passing: where a dotted line goes.
    """
    width, height = PARETO
    ends = [v for s in spots for v in (s.x, s.low, s.high) if v is not None]
    x_low, x_high = _padded(min(ends), max(ends), 0.08)
    heights = [max(s.y, DEEPEST) for s in spots]
    heights += [] if passing is None else [passing]
    y_low, y_high = _padded(min(heights), max(heights), 0.09)
    x = svg.Scale(x_low, x_high, 62, width - 26)
    y = svg.Scale(y_low, y_high, height - 50, 12)
    marks = _axes(x, y, x_label, y_label, height)
    if passing is not None:
        marks.append(svg.rule(x.start, y.at(passing), x.stop, y.at(passing), "passing"))
    methods = front([spot for spot in spots if spot.kind != "control"])
    if len(methods) > 1:
        # Between two results nothing is known: the front goes down in steps.
        data = f"M{svg.pixel(x.at(methods[0].x))} {svg.pixel(y.at(methods[0].y))}"
        for spot in methods[1:]:
            data += f"V{svg.pixel(y.at(spot.y))}H{svg.pixel(x.at(spot.x))}"
        marks.append(svg.mark(data, "front"))
    taken = [
        (x.at(s.x) - 7, y.at(s.y) - 7, x.at(s.x) + 7, y.at(s.y) + 7) for s in spots
    ]
    taken += [
        (x.at(s.low), y.at(s.y) - 2, x.at(s.high), y.at(s.y) + 2)
        for s in spots
        if s.low is not None and s.high is not None
    ]
    for spot in spots:
        a, b = x.at(spot.x), y.at(spot.y)
        if spot.low is not None and spot.high is not None:
            marks.append(
                svg.rule(x.at(spot.low), b, x.at(spot.high), b, f"reach {spot.kind}")
            )
        marks.append(symbol(a, b, spot.kind))
    frame = (x.start, y.stop, x.stop, y.start)
    for spot in sorted(spots, key=lambda s: s.kind != "control"):
        marks.append(_label(spot, x.at(spot.x), y.at(spot.y), taken, frame))
    spoken = ", ".join(f"{s.name} ({s.x:.2f}, {s.y:.1f})" for s in spots)
    return svg.figure(
        width, height, marks, f"{x_label} against {y_label}: {spoken}. See the tables."
    )


def curve_figure(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    ticks: Mapping[Number, str],
) -> Markup:
    """Curves over layers or steps; every point is marked.

    Args:
      lines: the curves.
      x_label: name of the horizontal axis.
      y_label: name of the vertical axis.
      ticks: labels of the horizontal axis by place.
    """
    width, height = 460, 300
    every = np.concatenate([line.y for line in lines])
    columns = np.concatenate([line.x for line in lines])
    x = svg.Scale(float(columns.min()), max(float(columns.max()), 1.0), 56, width - 24)
    y = svg.Scale(*_padded(float(every.min()), float(every.max()), 0.08), 250, 12)
    marks = _axes(x, y, x_label, y_label, height, x_ticks=ticks)
    for line in lines:
        a, b = x(line.x), y(line.y)
        marks.append(svg.mark(svg.line(a, b), f"curve {line.css}"))
        marks += [_dot(u, v, f"point {line.css}", 3) for u, v in zip(a, b, strict=True)]
    spoken = ", ".join(
        f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines
    )
    return svg.figure(width, height, marks, f"{y_label} over {x_label}: {spoken}.")


def map_figure(clouds: Mapping[str, tuple[str, Float[np.ndarray, "n 2"]]]) -> Markup:
    """Texts of several models in one plane.

    Args:
      clouds: by name a CSS class and the points.
    """
    width, height = 460, 320
    every = np.concatenate([points for _, points in clouds.values()])
    low, high = every.min(axis=0), every.max(axis=0)
    x = svg.Scale(*_padded(float(low[0]), float(high[0]), 0.05), 20, width - 20)
    y = svg.Scale(*_padded(float(low[1]), float(high[1]), 0.05), height - 40, 12)
    marks = [
        svg.rule(x.start, y.start, x.stop, y.start, "tick"),
        svg.rule(x.start, y.start, x.start, y.stop, "tick"),
        svg.text(
            (x.start + x.stop) / 2,
            height - 14,
            "first component",
            "title",
            anchor="middle",
        ),
        svg.upright(13, (y.start + y.stop) / 2, "second component"),
    ]
    for css, points in clouds.values():
        marks += [_dot(x.at(a), y.at(b), f"cloud {css}", 3.2) for a, b in points]
    spoken = " and ".join(
        f"{len(points)} texts under {name}" for name, (_, points) in clouds.items()
    )
    return svg.figure(width, height, marks, f"Two principal components: {spoken}.")


def _axes(
    x: svg.Scale,
    y: svg.Scale,
    x_label: str,
    y_label: str,
    height: int,
    *,
    x_ticks: Mapping[Number, str] | None = None,
) -> list[Markup]:
    marks = []
    if x_ticks is None:
        x_ticks = {t: svg.label_number(t) for t in svg.nice_ticks(x.low, x.high)}
    for tick, label in x_ticks.items():
        place = x.at(tick)
        marks.append(svg.rule(place, y.start, place, y.stop, "grid"))
        marks.append(svg.text(place, y.start + 18, label, anchor="middle"))
    for tick in svg.nice_ticks(y.low, y.high):
        level = y.at(tick)
        marks.append(svg.rule(x.start, level, x.stop, level, "grid"))
        marks.append(
            svg.text(x.start - 8, level + 4, svg.label_number(tick), anchor="end")
        )
    middle = (x.start + x.stop) / 2
    marks.append(svg.text(middle, height - 8, x_label, "title", anchor="middle"))
    marks.append(svg.upright(14, (y.start + y.stop) / 2, y_label))
    return marks


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with some room at both ends, never empty."""
    room = (high - low) * share if high > low else max(abs(high), 1.0) * share
    return low - room, high + room


def _dot(x: Number, y: Number, css: str, radius: Number) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(
        css, svg.pixel(x), svg.pixel(y), radius
    )


def symbol(x: Number, y: Number, kind: str) -> Markup:
    """A dot; a cross for over-forgotten, a ring for recognized, a diamond to compare.

    Shape and color say the same.
    """
    if kind == "over":
        arms = f"M{svg.pixel(x - 5)} {svg.pixel(y - 5)}l10 10m0 -10l-10 10"
        return svg.mark(arms, "spot over")
    if kind == "control":
        return svg.mark(
            f"M{svg.pixel(x)} {svg.pixel(y - 7)}l7 7l-7 7l-7 -7Z", "spot control"
        )
    return _dot(x, y, f"spot {kind}", 5)


def _label(
    spot: Spot,
    x: float,
    y: float,
    taken: list[Box],
    frame: Box,
) -> Markup:
    """The name of a spot where it covers no other; right of it if all places do."""
    size = CHARACTER * len(spot.name)
    places = [
        (x + 10 + dx, y + 4 + dy, "start")
        for dx, dy in ((0, 0), (0, -11), (0, 11), (0, -22), (0, 22))
    ]
    places += [(x - 10, y + 4 + dy, "end") for dy in (0, -11, 11, -22, 22)]
    places += [(x, y + dy, "middle") for dy in (-12, 20, -25, 33, -38, 46)]
    chosen = places[0]
    for a, b, anchor in places:
        left = a - {"start": 0.0, "middle": size / 2, "end": size}[anchor]
        box = (left, b - 10, left + size, b + 3)
        inside = (
            box[0] >= frame[0]
            and box[1] >= frame[1]
            and box[2] <= frame[2]
            and box[3] <= frame[3]
        )
        if inside and not any(_overlap(box, other) for other in taken):
            chosen = (a, b, anchor)
            taken.append(box)
            break
    return svg.text(chosen[0], chosen[1], spot.name, "name", anchor=chosen[2])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
