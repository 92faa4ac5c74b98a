"""Texts in JSON-lines files: one object a line with `text`, maybe `id`, `label`."""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic

log = logging.getLogger(__name__)

_BOM = b"\xef\xbb\xbf"


class Text(NamedTuple):
    """One text under audit, with the line that it came from."""

    id: str
    """Explicit, or `text_id` of the text."""
    text: str
    """May be empty; holds no lone surrogates."""
    label: int | None = None
    """1 member, 0 non-member, None unknown."""
    line: int = 0
    """Line in the file, from 1; 0 when the text came from no file."""


def text_id(text: str) -> str:
    """Sixteen hexadecimal digits that name a text whatever its white space.

    Two texts that differ in white space alone share the id. It is the first 64 bits
    of SHA-256 over the words joined by single spaces.
    """
    words = " ".join(text.split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_unit(*parts: object) -> float:
    """A number in [0, 1), uniform over inputs, from the text forms of `parts`.

    BLAKE2b over the parts joined by the unit separator; the upper 53 of 64 bits. The
    same on every machine and Python version.
    """
    joined = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(joined, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) over the sorted ids: names a corpus in any order.

    Numbers measured on texts are comparable only at equal fingerprint.
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD and pairs joined.

    JSON may spell half of a surrogate pair; such a string has no UTF-8 form, so
    neither tokenizers nor compressors take it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def zlib_length(text: str) -> int:
    """Bytes of the text's UTF-8 form after zlib compression at the default level."""
    return len(zlib.compress(well_formed(text).encode()))


def read_texts(path: Path | str, *, require_label: bool = False) -> list[Text]:
    """Read a JSON-lines file of texts, in file order.

    Blank lines are skipped; a byte-order mark and any newline convention are fine;
    fields other than `text`, `id` and `label` are ignored. An integer id becomes a
    string. Lone surrogates in a text become U+FFFD, with a logged warning.

    Args:
      path: the file.
      require_label: refuse rows without a label.

    Raises:
      InputError: naming file and line: no such file, no rows, invalid UTF-8, not a
        JSON object, `text` missing or no string, a bad label or id, an id twice.
    """
    path = Path(path)
    texts: list[Text] = []
    lines_of_ids: dict[str, int] = {}
    repaired = []
    for line, raw in _lines(path):
        where = f"{path}:{line}"
        row = _json_object(raw, where)
        explicit = _id(row, where)
        if explicit is not None:
            first = lines_of_ids.setdefault(explicit, line)
            if first != line:
                raise InputError(
                    f"{where}: id {_short(explicit)} already stands on line {first}; "
                    "give each row its own id, or none"
                )
        original = _text(row, where)
        text = well_formed(original)
        if text != original:
            repaired.append(line)
        label = _label(row, where)
        if label is None and require_label:
            raise InputError(
                f"{where}: no 'label'; expected 1 (member) or 0 (non-member)"
            )
        texts.append(Text(explicit or text_id(text), text, label, line))
    if not texts:
        raise InputError(
            f"{path}: no texts in it; expected one JSON object a line with a 'text'"
        )
    if repaired:
        log.warning(
            "%s: lone surrogates replaced by U+FFFD on %d line(s), first %d",
            path,
            len(repaired),
            repaired[0],
        )
    return texts


def write_texts(path: Path | str, rows: Iterable[Text | Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically.

    A `Text` is written with `id`, `text` and, when known, `label`; a mapping is
    written as it is.
    """
    lines = [
        json.dumps(_as_mapping(row), ensure_ascii=False, allow_nan=False) + "\n"
        for row in rows
    ]
    write_atomic(path, well_formed("".join(lines)))


def _as_mapping(row: Text | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return dict(row)
    label = {} if row.label is None else {"label": row.label}
    return {"id": row.id, "text": row.text} | label


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank."""
    number = 0
    try:
        with open(path, "rb") as file:
            start = file.read(len(_BOM))
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{path}: encoded as UTF-16; save it as UTF-8")
            if start != _BOM:
                file.seek(0)
            for chunk in file:
                # A raw carriage return cannot occur inside a JSON string, so each
                # one ends a line.
                for raw in chunk.splitlines():
                    number += 1
                    if raw.strip():
                        yield number, raw
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected a JSON-lines file"
        ) from error


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
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
    except (RecursionError, ValueError) as error:  # nesting, or a huge integer
        raise InputError(f"{where}: JSON that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: found a JSON {_kind(value)}; expected an object such as "
            '{"text": "..."}'
        )
    return value


def _text(row: dict[str, Any], where: str) -> str:
    if "text" not in row:
        names = ", ".join(_short(name) for name in list(row)[:8]) or "none"
        raise InputError(f"{where}: no 'text' field; the fields are: {names}")
    if not isinstance(row["text"], str):
        raise InputError(
            f"{where}: 'text' is a {_kind(row['text'])}; expected a string"
        )
    return row["text"]


def _id(row: dict[str, Any], where: str) -> str | None:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, str) and value):
        return None if value is None else well_formed(value)
    raise InputError(
        f"{where}: id {_short(value)} is no name; expected a non-empty string or an "
        "integer"
    )


def _label(row: dict[str, Any], where: str) -> int | None:
    value = row.get("label")
    if value is None:
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    raise InputError(
        f"{where}: label {_short(value)}; expected 1 (member) or 0 (non-member)"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", list: "list"}
    return names.get(type(value), "object")


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
