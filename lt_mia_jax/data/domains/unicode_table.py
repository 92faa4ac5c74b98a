"""The Unicode character table as short tables of comma-separated rows."""

import sys
import unicodedata
from collections.abc import Iterator

_GROUP = 8


def character_tables() -> Iterator[str]:
    """Tables of up to eight neighbouring characters, one row a character.

    A row is "code point in hexadecimal, name, category, bidirectional class,
    combining class, decomposition". Left out are characters without a name and those
    whose name says only the code point or follows from a rule (Han, Hangul).
    """
    for first in range(0, sys.maxunicode + 1, _GROUP):
        points = range(first, first + _GROUP)
        rows = [row for row in map(_row, points) if row is not None]
        if rows:
            yield "\n".join(rows)


def _row(point: int) -> str | None:
    character = chr(point)
    name = unicodedata.name(character, None)
    if name is None or name.startswith("HANGUL SYLLABLE"):
        return None
    if name.endswith(f"-{point:04X}"):
        return None
    cells = (
        f"{point:04X}",
        name,
        unicodedata.category(character),
        unicodedata.bidirectional(character),
        str(unicodedata.combining(character)),
        unicodedata.decomposition(character),
    )
    return ", ".join(cells).rstrip(", ")
