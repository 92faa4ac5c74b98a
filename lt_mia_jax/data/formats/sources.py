"""Rows of texts from what people have: files of several formats, folders, the hub."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lt_mia_jax.data.formats import streams, tables
from lt_mia_jax.data.jsonl import Row, json_rows, parse_rows
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

COLUMN = "text"
"""Field or column that holds the texts, unless another is named."""


def read_rows(
    path: Path | str,
    parse: Callable[[Row], T],
    *,
    expected: str,
    column: str = COLUMN,
) -> list[T]:
    """Parse every row of a source, in its order.

    The name of the source says what it is: `hub:NAME`, a folder of `.txt` files,
    `.csv`, `.parquet`, else JSON lines (`.gz` and `.zst`: compressed). Rows are
    checked as in `read_jsonl`.

    Args:
      path: the source.
      parse: converts a row, and raises `InputError` about its fields.
      expected: end of the message "no ..." about a source without rows.
      column: a field that takes the place of `text`.

    Raises:
      InputError: as `read_jsonl`, or the source has no such column.
    """
    rows = _rows(Path(path), column)
    if column != COLUMN:
        rows = (_renamed(row, column) for row in rows)
    return parse_rows(rows, str(path), parse, expected)


def source_name(path: Path | str) -> str:
    """A short name of a source for tables: without folders and endings.

    Example:
      >>> from lt_mia_jax.data.formats.sources import source_name
      >>> [source_name(x) for x in ("a/b.jsonl.gz", "texts/", "hub:org/set::test")]
      ['b', 'texts', 'set']
    """
    if tables.is_hub(str(path)):
        return tables.hub_parts(str(path)).name.split("/")[-1]
    found = Path(path)
    if found.suffix.lower() in (".gz", ".zst"):
        found = found.with_suffix("")
    return found.stem


def is_source(name: str) -> bool:
    """Whether a name is one of a file of texts, a folder, or a data set of the hub."""
    path = Path(name)
    known = path.suffix.lower() in (".jsonl", ".gz", ".zst", ".csv", ".parquet")
    return known or tables.is_hub(name) or path.is_dir()


def _rows(path: Path, column: str) -> Iterator[Row]:
    if tables.is_hub(str(path)):
        return tables.hub_rows_of(str(path), column)
    if path.is_dir():
        return _folder_rows(path)
    kind = path.suffix.lower()
    if kind == ".txt":
        raise InputError(
            f"{path}: a single text file; give a folder of .txt files, one text each, "
            "or JSON lines in a file named .jsonl"
        )
    readers = {".csv": tables.csv_rows, ".parquet": tables.parquet_rows}
    return readers[kind](path, column) if kind in readers else json_rows(path)


def _renamed(row: Row, column: str) -> Row:
    if column not in row.values:
        raise row.lacks(f"no {column!r} field")
    kept = {name: row.values[name] for name in ("id", "label") if name in row.values}
    return row._replace(values=kept | {COLUMN: row.values[column]})


def _folder_rows(folder: Path) -> Iterator[Row]:
    """The `.txt` files of a folder and those inside it, by relative path."""
    paths = sorted(_text_files(folder))
    if not paths:
        raise InputError(
            f"{folder}: a folder without .txt files; expected one text in each file, "
            "or give a .jsonl, .csv or .parquet file"
        )
    empty: list[str] = []
    for name in paths:
        path = folder / name
        with streams.open_text(path) as file:
            raw = file.read(streams.LONGEST_LINE + 1)
        if len(raw) > streams.LONGEST_LINE:
            raise InputError(
                f"{path}: more than {streams.LONGEST_LINE} bytes; expected one text a "
                "file"
            )
        text = streams.decoded(raw, str(path))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            empty.append(name)
        yield Row({"id": name, COLUMN: text}, str(path), 0)
    if empty:
        log.warning("%s: %d empty files, first %s", folder, len(empty), empty[0])


def _text_files(folder: Path) -> Iterator[str]:
    for home, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(".txt") and not name.startswith("."):
                yield (Path(home) / name).relative_to(folder).as_posix()
