"""Rows of statistics appended to a file, by a run that may be stopped at any time."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lt_mia_jax.data.jsonl import short
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics_file import TextRow, as_json, read_statistics
from lt_mia_jax.files import parse_json

log = logging.getLogger(__name__)

_BEGINNING = re.compile(rb'\{"id": "(?:[^"\\]|\\.)*\\?')
_NEXT = b'", "token_ids": ['
"""How `as_json` begins a row."""


def present_rows(
    path: Path, wanted: Mapping[str, TextRow], common: Mapping[str, Any]
) -> frozenset[str]:
    """Ids of the rows that a file has already; what a kill left of a line is removed.

    Args:
      path: the file, which need not exist.
      wanted: rows that will be written, by id; their numbers do not count.
      common: fields that all rows share, such as the name of the model.

    Raises:
      InputError: it holds something else than rows of this model with these tokens.
    """
    if not path.exists():
        return frozenset()
    try:
        size = _mend(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not size:
        return frozenset()
    rows = read_statistics(path).rows
    for row in rows.values():
        for name, value in common.items():
            if getattr(row, name) != value:
                raise InputError(
                    f"{name} {short(getattr(row, name))}, expected {short(value)}"
                )
        same = wanted.get(row.id)
        if same is not None and _tokens(same) != _tokens(row):
            raise InputError(
                f"other tokens for text {short(row.id)}: another text, tokenizer, "
                "--length, --side, --bos or --score"
            )
    return frozenset(rows)


def _tokens(row: TextRow) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are scored."""
    ids = np.asarray(row.token_ids).tolist()
    scored = [True] * len(ids) if row.scored is None else row.scored
    return ids, [bool(each) for each in scored]


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[TextRow], None]]:
    """A function that writes a row; each is in the file when it returns.

    The file holds texts, so that only its owner can read it. None is left empty.

    Raises:
      InputError: the disk is full or the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            handle = os.open(path, flags, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        stack.callback(_remove_empty, path)
        file = stack.enter_context(os.fdopen(handle, "ab"))

        def write(row: TextRow) -> None:
            try:
                file.write(as_json(row).encode() + b"\n")
                file.flush()
            except OSError as error:
                raise _unwritable(path, error) from error

        yield write
        os.fsync(handle)


def _mend(path: Path) -> int:
    """Remove what a kill left of a last line, or end it; the size that is left."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        last = content[whole:]
        if not last or not all(map(_is_beginning, (content, last))):
            return len(content)
        with contextlib.suppress(ValueError):
            parse_json(last)
            return len(content) + file.write(b"\n")
        log.warning("%s: the last line is incomplete, its text is next", path)
        file.truncate(whole)
        return whole


def _is_beginning(line: bytes) -> bool:
    """Whether a line begins as our rows do, or a part of a row does."""
    found = _BEGINNING.match(line)
    if found is None:
        return b'{"id": "'.startswith(line)
    rest = line[found.end() :]
    return rest.startswith(_NEXT) or _NEXT.startswith(rest)


def _remove_empty(path: Path) -> None:
    if not path.stat().st_size:
        path.unlink()


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another "
        "--out"
    )
