"""JSON-lines files: one JSON object a line, in UTF-8."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import open_regular, parse_json, write_atomic

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_LINE = 2**26
"""Bytes of a line, its end included; whole books are shorter."""
_BOM = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One object of a file. Errors about its fields name file and line."""

    values: dict[str, Any]
    """Fields by name; strings are `well_formed`."""
    where: str
    """`FILE:LINE`."""
    line: int
    """From 1."""

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
    """Parse every row of a file, in file order.

    Blank lines are skipped; a byte-order mark and any newline convention are
    accepted. Lone surrogates become U+FFFD, with a logged warning.

    Args:
      path: the file.
      parse: converts a row, and raises `InputError` about its fields.
      expected: end of the message "no ..." about a file without rows.
      unique: whether a repeated id is an error.

    Raises:
      InputError: no such file, no regular file, no rows, invalid UTF-8, a line longer
        than `LONGEST_LINE`, a line that is no JSON object or has a key twice, an id
        twice, or what `parse` raises. The message names file and line.
    """
    parsed: list[T] = []
    lines_of_ids: dict[str, int] = {}
    repaired = []
    for line, raw in _lines(Path(path)):
        where = f"{path}:{line}"
        values = _json_object(raw, where)
        row = Row(_well_formed(values), where, line)
        if row.values != values:
            repaired.append(line)
        parsed.append(parse(row))
        own = row.id
        first = line if own is None else lines_of_ids.setdefault(own, line)
        if unique and first != line:
            raise InputError(
                f"{where}: id {short(own)} already stands on line {first}; give "
                "each row its own id, or none"
            )
    if not parsed:
        raise InputError(f"{path}: no {expected}")
    if repaired:
        log.warning(
            "%s: lone surrogates replaced by U+FFFD on %d line(s), first %d",
            path,
            len(repaired),
            repaired[0],
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
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _well_formed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields with strings, and strings in lists, `well_formed`."""

    def mended(value: Any) -> Any:
        if isinstance(value, list):
            return [mended(x) if isinstance(x, str) else x for x in value]
        return well_formed(value) if isinstance(value, str) else value

    return {name: mended(value) for name, value in values.items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank."""
    number = 0
    with open_regular(path) as file:
        start = file.read(len(_BOM))
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: encoded as UTF-16; save it as UTF-8")
        if start != _BOM:
            file.seek(0)
        while chunk := file.readline(LONGEST_LINE + 1):
            if len(chunk) > LONGEST_LINE:
                raise InputError(
                    f"{path}:{number + 1}: a line of more than {LONGEST_LINE} bytes; "
                    "expected JSON lines, one object and one text a line"
                )
            # JSON strings contain no raw carriage return, so each ends a line.
            for raw in chunk.splitlines():
                number += 1
                if raw.strip():
                    yield number, raw


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: invalid UTF-8, byte 0x{raw[error.start]:02x} at byte "
            f"{error.start + 1} of the line; save the file as UTF-8"
        ) from error
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
