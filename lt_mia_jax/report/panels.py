"""What a page is made of: panels, articles and the records they show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar

from markupsafe import Markup

from lt_mia_jax.report.wording import NBSP

Data = TypeVar("Data")


class Place(NamedTuple):
    """Where on the page an article stands."""

    anchor: str = ""
    """Its id; empty for the only article of a page."""
    level: int = 2
    """Of the headings of its sections."""

    def id(self, name: str) -> str:
        """An id inside the article."""
        name = name.lower().replace(" ", "-")
        return f"{self.anchor}-{name}" if self.anchor else name


@dataclass(frozen=True)
class Panel(Generic[Data]):
    """A section of a page: one row of the page's table of panels."""

    title: str
    body: Callable[[Data, Place], Markup | str]
    """What is shown, escaped unless it is `Markup`."""
    shown: Callable[[Data], bool] = lambda _: True
    """Whether there is something to show."""
    name: str = ""
    """In the list of contents; empty leaves it out there."""
    headed: bool = True
    """Whether the title is seen, or only heard from a screen reader."""


class Section(NamedTuple):
    """A panel with its content."""

    title: str
    body: Markup | str
    name: str
    anchor: str
    headed: bool


class Article(NamedTuple):
    """The sections of one run or group of runs."""

    anchor: str
    title: str
    sections: Sequence[Section]
    level: int
    css: str = "run"


class Page(NamedTuple):
    """A whole page."""

    kicker: str
    title: str
    articles: Sequence[Article]
    contents: Sequence[tuple[str, str]]
    """Anchors and names."""
    reading: Markup
    """How to read the page."""


class Tile(NamedTuple):
    """One headline number."""

    label: str
    value: str
    detail: str


class Finding(NamedTuple):
    """What speaks for or against a result, or a remark that does neither."""

    level: Literal["pass", "caution", "note"]
    title: str
    text: str


caution = partial(Finding, "caution")
note = partial(Finding, "note")
passed = partial(Finding, "pass")


def article(
    panels: Iterable[Panel[Data]], data: Data, place: Place, title: str = ""
) -> Article:
    """The panels that have something to show of `data`."""
    sections = [
        Section(
            panel.title,
            panel.body(data, place),
            panel.name,
            place.id(panel.name) if panel.name else "",
            panel.headed,
        )
        for panel in panels
        if panel.shown(data)
    ]
    return Article(place.anchor, title, sections, place.level)


def contents(found: Article) -> list[tuple[str, str]]:
    """Anchors and names of the sections of a page with one article."""
    return [(each.anchor, each.name) for each in found.sections if each.name]


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """Findings with cautions first, as sentences."""
    sentences = []
    for each in found:
        text = each.text[:1].upper() + each.text[1:]
        sentences.append(each._replace(text=text.replace(" %", f"{NBSP}%")))
    return sorted(sentences, key=lambda e: ("caution", "note", "pass").index(e.level))
