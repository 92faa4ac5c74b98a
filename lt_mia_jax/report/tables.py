"""Tables: cells with intervals, rows, captions."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.report.drawing.intervals import interval_figure
from lt_mia_jax.report.wording import NONE, Number, bounds, percentage, unit


class Column(NamedTuple):
    """The head of a column."""

    label: str
    hint: str = ""
    kind: Literal["number", "text"] = "number"
    sorted: Literal["", "ascending", "descending"] = ""
    """How the rows stand."""


class Cell(NamedTuple):
    """One cell of a table."""

    value: Number | str | None = None
    """By which the column is sorted; None sorts last."""
    text: str = NONE
    bounds: str = ""
    """The interval, in small print."""
    glyph: Markup = Markup("")
    strong: bool = False
    tag: str = ""
    tag_css: str = ""
    css: str = ""
    heat: float | None = None
    """Shade, from 0 to 1."""


class Row(NamedTuple):
    """One line of a table."""

    label: str
    cells: Sequence[Cell]
    definition: str = ""
    tag: str = ""
    href: str = ""
    """Anchor that the label leads to."""
    lead: bool = False
    control: bool = False
    """Stands below the line."""
    failed: str = ""
    """Why there are no cells."""


class Table(NamedTuple):
    """A table with a caption; the first column names the rows."""

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    css: str = "attacks"


TOO_FEW = Cell(
    text=Markup(
        '<span class="refused" title="Refused: fewer than ten false positives would '
        'decide it">too few</span>'
    )
)
"""A rate that is not quoted."""
Span = tuple[Number, Number]


def words(text: str, css: str = "") -> Cell:
    """A cell of prose."""
    return Cell(text=text, css=f"words {css}".rstrip())


def rate_cell(found: Estimate | None) -> Cell:
    """A rate in per cent with its interval."""
    if found is None or found.value is None:
        return Cell()
    return Cell(found.value, percentage(found.value), bounds(found, rate=True))


def estimate_cell(
    found: Estimate | None,
    *,
    digits: int = 3,
    span: Span | None = None,
    origin: Number = 0.0,
    strong: bool = True,
) -> Cell:
    """A number with its interval, drawn on the scale `span`, which marks `origin`."""
    if found is None or found.value is None:
        return Cell(strong=strong)
    ends = (found.value, found.low, found.high)
    glyph = interval_figure(*ends, span=span, origin=origin) if span else Markup("")
    text = unit(found.value, digits)
    return Cell(found.value, text, bounds(found, digits), glyph, strong)


def common_span(found: Iterable[Estimate | None], *least: Number) -> Span:
    """A scale on which all intervals of a column can be drawn, and `least`."""
    seen = [end for each in found if each for end in (each.value, each.low, each.high)]
    seen = [*least, *(end for end in seen if end is not None)]
    return min(seen, default=0.0), max(seen, default=1.0)
