"""Texts with ids and labels: read from what people have, written as JSON lines."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax import files
from lt_mia_jax.data.chat.rows import Chat, parse_chat
from lt_mia_jax.data.formats.sources import COLUMN, read_rows
from lt_mia_jax.data.jsonl import Row, short, well_formed, write_jsonl
from lt_mia_jax.errors import InputError


class Text(NamedTuple):
    """One text under audit."""

    id: str
    """Explicit, or `text_id` of the text."""
    text: str
    """May be empty; holds no lone surrogates."""
    label: int | None = None
    """1 member, 0 non-member, None unknown."""
    line: int = 0
    """Line in its file, from 1; 0 without a file."""
    chat: Chat | None = None
    """The conversation whose words are `text`; None for plain text."""

    @property
    def content(self) -> str | Chat:
        """What `encode` takes."""
        return self.text if self.chat is None else self.chat


def text_id(text: str) -> str:
    """Sixteen hexadecimal digits that identify a text up to white space.

    They are the first 64 bits of SHA-256 over the words joined by single spaces.
    """
    words = " ".join(text.split())
    return files.fingerprint(words)[:16]


def hash_unit(*parts: object) -> float:
    """A number in [0, 1), uniform over inputs, from the strings of `parts`.

    It is the upper 53 of 64 bits of BLAKE2b over the parts joined by the unit
    separator, on every machine and Python version.
    """
    joined = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(joined, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) over the sorted ids.

    Numbers measured on texts are comparable only if their fingerprints are equal, and
    their `contents`, where ids are not made from the texts.
    """
    return files.fingerprint("\n".join(sorted(ids)))


def contents(texts: Iterable[Text]) -> str:
    """SHA-256 (hexadecimal) over the sorted texts with their ids and labels."""
    rows = [files.fingerprint(row.id, "\0", row.text, [row.label]) for row in texts]
    return files.fingerprint(*sorted(rows))


def zlib_length(text: str) -> int:
    """Bytes of a text in UTF-8 after zlib compression at the default level."""
    return len(zlib.compress(well_formed(text).encode()))


def read_texts(path: Path | str, *, column: str = COLUMN) -> list[Text]:
    """Read texts from a file, a folder or the hub, in order; see `read_rows`.

    A row has `text` (or the `column` named), or a conversation (`chat.rows`), and may
    have `id` and `label`; other fields are ignored. An integer id becomes a string.

    Raises:
      InputError: as `read_rows`, or a missing or wrong `text` or `label`.

    Example:
      >>> from pathlib import Path
      >>> from lt_mia_jax import read_texts
      >>> _ = Path("texts.jsonl").write_text('{"text": "To be or not", "label": 1}')
      >>> [(row.text, row.label) for row in read_texts("texts.jsonl")]
      [('To be or not', 1)]
    """

    def parse(row: Row) -> Text:
        chat = None if "text" in row.values else parse_chat(row)
        text = row.string("text") if chat is None else chat.text
        label = row.values.get("label")
        known = isinstance(label, bool | int | float) and label in (0, 1)
        if not known and label is not None:
            raise InputError(
                f"{row.where}: label {short(label)}; expected 1 (member) or 0 "
                "(non-member)"
            )
        label = None if label is None else int(label)
        return Text(row.id or text_id(text), text, label, row.line, chat)

    expected = "texts in it; expected one JSON object a line with a 'text'"
    return read_rows(path, parse, expected=expected, column=column)


def write_texts(path: Path | str, rows: Iterable[Text | Mapping[str, Any]]) -> None:
    """Write texts (with known labels) or mappings as JSON lines, atomically."""
    write_jsonl(path, map(_as_mapping, rows))


def _as_mapping(row: Text | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    label = {} if row.label is None else {"label": row.label}
    fields = {"text": row.text} if row.chat is None else row.chat.fields
    return {"id": row.id} | fields | label


def check_one_kind(*sets: Sequence[Text]) -> None:
    """Refuse conversations beside plain texts: the format would tell them apart.

    Raises:
      InputError: with the numbers of both.
    """
    chats = [text.chat is not None for texts in sets for text in texts]
    if any(chats) and not all(chats):
        raise InputError(
            f"{sum(chats)} rows are conversations and {len(chats) - sum(chats)} are "
            "plain texts; give all of them in one form, which must not tell them apart"
        )
