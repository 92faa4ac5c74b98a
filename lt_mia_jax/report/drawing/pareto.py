"""Forgetting against utility: the Pareto plot, in a page or as a picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.wording import Number

CHARACTER = 6.4
"""Width of a letter of a label, about; labels keep clear of each other by it."""
Box = tuple[Number, Number, Number, Number]
"""Left, top, right and bottom, in pixels."""
PARETO = (720, 430)
"""Width and height of the Pareto plot, in pixels."""
DEEPEST = -40.0
"""Forget quality below this is drawn here: log10 p has no lower end."""
LEFT, KEY, HEAD = 62, 34, 36
"""Where titles of a picture begin; heights of its key and of a title, in pixels."""


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

    Those of kind "control" are not joined. `passing` is where a dotted line goes.
    """
    width, height = PARETO
    ends = [v for s in spots for v in (s.x, s.low, s.high) if v is not None]
    x_low, x_high = svg.padded(min(ends), max(ends), 0.08)
    heights = [max(s.y, DEEPEST) for s in spots]
    heights += [] if passing is None else [passing]
    y_low, y_high = svg.padded(min(heights), max(heights), 0.09)
    x = svg.Scale(x_low, x_high, 62, width - 26)
    y = svg.Scale(y_low, y_high, height - 50, 12)
    marks = svg.axes(x, y, height, x_label, y_label)
    if passing is not None:
        marks.append(svg.rule(x.start, y.at(passing), x.stop, y.at(passing), "passing"))
    methods = front([spot for spot in spots if spot.kind != "control"])
    if len(methods) > 1:
        # Between two results nothing is known: the front goes down in steps.
        data = f"M{svg.pixel(x.at(methods[0].x))} {svg.pixel(y.at(methods[0].y))}"
        for spot in methods[1:]:
            data += f"V{svg.pixel(y.at(spot.y))}H{svg.pixel(x.at(spot.x))}"
        marks.append(svg.mark(data, "front"))
    places = [(spot, x.at(spot.x), y.at(spot.y)) for spot in spots]
    taken = [(a - 7, b - 7, a + 7, b + 7) for _, a, b in places]
    for spot, a, b in places:
        if spot.low is not None and spot.high is not None:
            left, right = x.at(spot.low), x.at(spot.high)
            taken.append((left, b - 2, right, b + 2))
            marks.append(svg.rule(left, b, right, b, f"reach {spot.kind}"))
        marks.append(symbol(a, b, spot.kind))
    frame = (x.start, y.stop, x.stop, y.start)
    for spot, a, b in sorted(places, key=lambda place: place[0].kind != "control"):
        marks.append(_label(spot.name, a, b, taken, frame))
    spoken = ", ".join(f"{s.name} ({s.x:.2f}, {s.y:.1f})" for s in spots)
    return svg.figure(
        width, height, marks, f"{x_label} against {y_label}: {spoken}. See the tables."
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
    return svg.dot(x, y, f"spot {kind}", 5)


def _label(name: str, x: float, y: float, taken: list[Box], frame: Box) -> Markup:
    """The name of a spot where it covers no other; right of it if all places do."""
    size = CHARACTER * len(name)
    places = [(x + 10, y + 4 + dy, "start") for dy in (0, -11, 11, -22, 22)]
    places += [(x - 10, y + 4 + dy, "end") for dy in (0, -11, 11, -22, 22)]
    places += [(x, y + dy, "middle") for dy in (-12, 20, -25, 33, -38, 46)]
    chosen = places[0]
    for a, b, anchor in places:
        left = a - {"start": 0.0, "middle": size / 2, "end": size}[anchor]
        box = (left, b - 10, left + size, b + 3)
        inside = (box[0] >= frame[0] and box[1] >= frame[1]) and (
            box[2] <= frame[2] and box[3] <= frame[3]
        )
        if inside and not any(_overlap(box, other) for other in taken):
            chosen = (a, b, anchor)
            taken.append(box)
            break
    return svg.text(chosen[0], chosen[1], name, "name", anchor=chosen[2])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def picture(figures: Mapping[str, svg.Figure], style: Markup) -> str:
    """An SVG document: the key, then each plot under its title.

    All plots have the same key. `style` is the page's CSS, whose colors follow the
    reader's light or dark screen.
    """
    width, height = PARETO
    marks, x = [], 20.0
    for css, text in next(iter(figures.values())).key:
        marks.append(symbol(x, 15, css.removeprefix("spot ")))
        marks.append(svg.text(x + 11, 19, text))
        x += 24 + 0.94 * CHARACTER * len(text)  # has to fit
    top = KEY
    for title, figure in figures.items():
        marks.append(svg.text(LEFT, top + 20, title, "title"))
        marks.append(
            Markup('<svg y="{}" width="{}" height="{}">{}</svg>').format(
                top + HEAD, width, height, figure.svg
            )
        )
        top += HEAD + height
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}">'
        "<style>{}</style>{}</svg>\n"
    ).format(width, top, style, Markup("").join(marks))
