"""The Unicode character table as short tables of comma-separated rows."""

import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby

_GROUP = 8


def character_tables() -> Iterator[str]:
    """Tables of up to eight consecutive characters, one row per character.

    A row is "code point in hexadecimal, name, category, bidirectional class,
    combining class, decomposition". Characters without a name are skipped, and those
    whose name contains only the code point or follows from a rule (Han, Hangul).
    """
    for _, points in groupby(_telling_points(), lambda point: point // _GROUP):
        yield "\n".join(_row(point) for point in points)


def _telling_points() -> Iterator[int]:
    for point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(point), None)
        if name is None or name.startswith("HANGUL SYLLABLE"):
            continue
        if not name.endswith(f"-{point:04X}"):
            yield point


def _row(point: int) -> str:
    character = chr(point)
    cells = (
        f"{point:04X}",
        unicodedata.name(character),
        unicodedata.category(character),
        unicodedata.bidirectional(character),
        str(unicodedata.combining(character)),
        unicodedata.decomposition(character),
    )
    return ", ".join(cells).rstrip(", ")
