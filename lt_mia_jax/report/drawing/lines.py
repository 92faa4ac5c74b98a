"""Curves over layers or steps, and texts as points in the plane."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.wording import Number


class Line(NamedTuple):
    """One curve."""

    name: str
    css: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


def line_figure(
    lines: Sequence[Line],
    titles: tuple[str, str],
    ticks: Mapping[Number, str],
    title: str,
    caption: str,
) -> svg.Figure:
    """Curves over layers or steps; every point is marked.

    `titles` are those of the axes, `ticks` labels of the horizontal one by value.
    """
    width, height = 460, 300
    every = np.concatenate([line.y for line in lines])
    columns = np.concatenate([line.x for line in lines])
    low, high = svg.padded(float(every.min()), float(every.max()), 0.08)
    x = svg.Scale(float(columns.min()), max(float(columns.max()), 1.0), 56, width - 24)
    y = svg.Scale(low, high, height - 50, 12)
    marks = svg.axes(x, y, height, *titles, x_ticks=ticks)
    for line in lines:
        a, b = x(line.x), y(line.y)
        marks.append(svg.mark(svg.line(a, b), f"curve {line.css}"))
        dots = zip(a, b, strict=True)
        marks += [svg.dot(u, v, f"point {line.css}", 3) for u, v in dots]
    spoken = ", ".join(
        f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines
    )
    label = f"{titles[1]} over {titles[0]}: {spoken}."
    drawn = svg.figure(width, height, marks, label)
    key = [(f"curve {line.css}", line.name) for line in lines]
    return svg.Figure(drawn, key, title, caption)


def scatter_figure(
    clouds: Mapping[str, tuple[str, Float[np.ndarray, "n 2"]]], title: str, caption: str
) -> svg.Figure:
    """Texts of several models in one plane, by name a CSS class and the points."""
    width, height = 460, 320
    every = np.concatenate([points for _, points in clouds.values()])
    low, high = every.min(axis=0).tolist(), every.max(axis=0).tolist()
    x = svg.Scale(*svg.padded(low[0], high[0], 0.05), 20, width - 20)
    y = svg.Scale(*svg.padded(low[1], high[1], 0.05), height - 40, 12)
    titles = "first component", "second component"
    marks = svg.axes(x, y, height - 6, *titles, x_ticks={}, y_ticks={})
    marks.append(svg.rule(x.start, y.start, x.stop, y.start, "tick"))
    marks.append(svg.rule(x.start, y.start, x.start, y.stop, "tick"))
    for css, points in clouds.values():
        marks += [svg.dot(x.at(a), y.at(b), f"cloud {css}", 3.2) for a, b in points]
    spoken = " and ".join(
        f"{len(points)} texts under {name}" for name, (_, points) in clouds.items()
    )
    drawn = svg.figure(width, height, marks, f"Two principal components: {spoken}.")
    key = [(f"swatch {css}", name) for name, (css, _) in clouds.items()]
    return svg.Figure(drawn, key, title, caption)
