"""JSON-lines files: one JSON object a line, in UTF-8."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lt_mia_jax.data.formats.streams import decoded, lines
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import parse_json, write_atomic

log = logging.getLogger(__name__)

T = TypeVar("T")


class Row(NamedTuple):
    """One object of a file. Errors about its fields name file and line."""

    values: dict[str, Any]
    """Fields by name; strings are `well_formed`."""
    where: str
    """`FILE:LINE`, or what else names the row."""
    line: int
    """From 1; 0 where rows are not lines."""

    @property
    def id(self) -> str | None:
        """The field `id` as a string; None when absent.

        Raises:
          InputError: neither a non-empty string nor an integer.
        """
        value = self.values.get("id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or (isinstance(value, str) and value):
            return value
        raise InputError(
            f"{self.where}: id {short(value)}; expected a non-empty string or an "
            "integer"
        )

    def string(self, name: str) -> str:
        """A field that must hold a string.

        Raises:
          InputError: it is absent or holds something else.
        """
        if name not in self.values:
            raise self.lacks(f"no {name!r} field")
        value = self.values[name]
        if not isinstance(value, str):
            raise InputError(
                f"{self.where}: {name!r} is a {kind(value)}; expected a string"
            )
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty when absent.

        Raises:
          InputError: the field holds something else.
        """
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise InputError(
                f"{self.where}: {name!r} is {short(value)}; expected strings in []"
            )
        return tuple(value)

    def lacks(self, what: str, expected: str = "") -> InputError:
        """An error about an absent field, with the names of those present."""
        names = ", ".join(map(short, list(self.values)[:8])) or "none"
        return InputError(f"{self.where}: {what}; the fields are: {names}{expected}")


def read_jsonl(
    path: Path | str, parse: Callable[[Row], T], *, expected: str, unique: bool = True
) -> list[T]:
    """Parse every row of a JSON-lines file, in file order.

    Blank lines are skipped; a byte-order mark and any newline convention are
    accepted. Lone surrogates become U+FFFD, with a logged warning.

    Args:
      path: the file.
      parse: converts a row, and raises `InputError` about its fields.
      expected: end of the message "no ..." about a file without rows.
      unique: whether a repeated id is an error.

    Raises:
      InputError: no such file, no regular file, no rows, invalid UTF-8, a line longer
        than `streams.LONGEST_LINE`, a line that is no JSON object or has a key twice,
        an id twice, or what `parse` raises. The message names file and line.
    """
    return parse_rows(json_rows(Path(path)), str(path), parse, expected, unique)


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a file, as they stand there."""
    number = 0
    for chunk in lines(path):
        # JSON strings contain no raw carriage return, so each ends a line.
        for raw in chunk.splitlines():
            number += 1
            if raw.strip():
                where = f"{path}:{number}"
                yield Row(_json_object(raw, where), where, number)


def parse_rows(
    rows: Iterable[Row],
    source: str,
    parse: Callable[[Row], T],
    expected: str,
    unique: bool = True,
) -> list[T]:
    """What `parse` makes of every row of a source; see `read_jsonl`."""
    parsed: list[T] = []
    places: dict[str, str] = {}
    repaired = []
    for found in rows:
        row = found._replace(values=_well_formed(found.values))
        place = f"on line {row.line}" if row.line else f"at {row.where}"
        if row.values != found.values:
            repaired.append(place)
        parsed.append(parse(row))
        own = row.id
        first = place if own is None else places.setdefault(own, place)
        if unique and first != place:
            raise InputError(
                f"{row.where}: id {short(own)} already stands {first}; give each row "
                "its own id, or none"
            )
    if not parsed:
        raise InputError(f"{source}: no {expected}")
    if repaired:
        log.warning(
            "%s: lone surrogates replaced by U+FFFD on %d line(s), first %s",
            source,
            len(repaired),
            repaired[0].removeprefix("on line "),
        )
    return parsed


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically; lone surrogates become U+FFFD.

    The file holds texts, so that only its owner can read it.
    """
    lines = [
        json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
        for row in rows
    ]
    write_atomic(path, well_formed("".join(lines)), private=True)


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD.

    JSON can contain lone surrogates, which UTF-8 cannot encode, so that tokenizers and
    compressors refuse them.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", list: "list"}
    return names.get(type(value), "object")


def short(value: Any) -> str:
    """A value as JSON for a message, in at most 60 characters."""
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _well_formed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields with every string in them `well_formed`."""

    def mended(value: Any) -> Any:
        if isinstance(value, list):
            return [mended(x) for x in value]
        if isinstance(value, dict):
            return {name: mended(x) for name, x in value.items()}
        return well_formed(value) if isinstance(value, str) else value

    return mended(values)


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    text = decoded(raw, where)
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); expected an "
            'object such as {"text": "..."}'
        ) from error
    except ValueError as error:
        raise InputError(f"{where}: JSON that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: found a JSON {kind(value)}; expected an object such as "
            '{"text": "..."}'
        )
    return value
