"""Rows of tables: CSV and Parquet files, and data sets of the Hugging Face hub."""

import csv
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax.data.formats import streams
from lt_mia_jax.data.jsonl import Row
from lt_mia_jax.data.rows import hub_rows
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import open_regular

log = logging.getLogger(__name__)

HUB = "hub:"
"""Begins the name of a data set of the hub: `hub:NAME[:CONFIG[:SPLIT]]`."""
TEXT_FIELDS = ("messages", "prompt", "question")
"""Columns that may stand in the place of the one with texts."""
_FEWEST, _BATCH = 8, 1024
_BATCH_BYTES = 2**29
_KEPT = ("text", "answer", "completion", "prompt", "question")
"""Columns whose empty cells are empty texts; elsewhere they are absent values."""
_LABELS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


class HubName(NamedTuple):
    """What `hub:NAME[:CONFIG[:SPLIT]]` names."""

    name: str
    config: str | None
    split: str


def is_hub(source: str) -> bool:
    """Whether a source is a data set of the hub; a file `./hub:x` has a folder."""
    return source.startswith(HUB)


def hub_parts(source: str) -> HubName:
    """The parts of `hub:NAME[:CONFIG[:SPLIT]]`.

    Raises:
      InputError: no name.

    Example:
      >>> from lt_mia_jax.data.formats.tables import hub_parts
      >>> hub_parts("hub:org/set::test")
      HubName(name='org/set', config=None, split='test')
    """
    name, config, split, *_ = (*source.removeprefix(HUB).split(":", 2), "", "")
    if not name:
        raise InputError(f"{source}: no data set named; expected hub:NAME:CONFIG:SPLIT")
    return HubName(name, config or None, split or "train")


def hub_rows_of(source: str, column: str) -> Iterator[Row]:
    """The rows of one split. Their `id` and `label` mean something else: left out.

    Raises:
      InputError: no such data set, or it has neither `column` nor `TEXT_FIELDS`.
    """
    name, config, split = hub_parts(source)
    for number, values in enumerate(hub_rows(name, config, split=split), 1):
        if number == 1:
            _check_columns(source, values, column)
            if "label" in values:
                log.info("%s: its labels say nothing of membership: not read", source)
        kept = {name: x for name, x in values.items() if name not in ("id", "label")}
        yield Row(kept, f"{source}: row {number}", 0)


def csv_rows(path: Path, column: str) -> Iterator[Row]:
    """The rows of a file with commas, quotes and a first line of names.

    Raises:
      InputError: as `streams.lines`, names twice or not `column`, a row of another
        number of fields, or a field longer than `streams.LONGEST_LINE`.

    Source: RFC 4180.
    """
    count = 0

    def text() -> Iterator[str]:
        nonlocal count
        for count, raw in enumerate(streams.lines(path), 1):
            yield streams.decoded(raw, f"{path}:{count}")

    old = csv.field_size_limit(streams.LONGEST_LINE)
    try:
        reader = csv.reader(text(), strict=True)
        names = next(reader, [])
        if not names:
            return
        _check_columns(path, names, column)
        for cells in reader:
            where = f"{path}:{count}"
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{where}: {len(cells)} fields, expected {len(names)} as in the "
                    "first line; put texts with commas between quotes"
                )
            yield Row(_cells(names, cells, column), where, count)
    except csv.Error as error:
        raise InputError(
            f"{path}:{count}: not CSV ({error}); expected fields between commas, with "
            "quotes around those that hold commas, quotes or line ends"
        ) from error
    finally:
        csv.field_size_limit(old)


def parquet_rows(path: Path, column: str) -> Iterator[Row]:
    """The rows of a Parquet file, some at a time.

    Raises:
      InputError: no Parquet file, not `column` in it, or more content than
        `streams.RATIO` allows.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number, unpacked, bytes_on_disk = 0, 0, 0
    with open_regular(path) as file:
        try:
            bytes_on_disk = path.stat().st_size
            found = ParquetFile(file)
            _check_columns(path, found.schema_arrow.names, column)
            about = found.metadata
            groups = [about.row_group(n) for n in range(about.num_row_groups)]
            largest = max([1, *(group.total_byte_size for group in groups)])
            # No value is larger than its group, so that a batch stays in memory.
            size = max(_FEWEST, min(_BATCH, _BATCH_BYTES // largest))
            for batch in found.iter_batches(batch_size=size):
                # Of repeated values one may be kept: what is read out counts.
                packed = streams.is_too_much(unpacked + batch.nbytes, bytes_on_disk)
                for values in () if packed else batch.to_pylist():
                    number += 1
                    unpacked += _characters(values)
                    if streams.is_too_much(unpacked, bytes_on_disk):
                        packed = True
                        break
                    yield Row(values, f"{path}: row {number}", 0)
                if packed:
                    raise InputError(
                        f"{path}: unpacks to more than {streams.RATIO} times its size, "
                        "which no texts do; expected a file of texts"
                    )
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: not a readable Parquet file ({error}); get it again"
            ) from error


def _characters(value: Any) -> int:
    """Characters of all strings in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value
    return sum(map(_characters, inner)) if isinstance(inner, Iterable) else 0


def _cells(names: list[str], cells: list[str], column: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: cell
        for name, cell in zip(names, cells, strict=True)
        if cell or name in (*_KEPT, column)
    }
    if "label" in found and column != "label":
        label = found["label"].strip().lower()
        found["label"] = _LABELS.get(label, found["label"])
    return found


def _check_columns(source: Any, names: Iterable[str], column: str) -> None:
    found = list(names)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise InputError(f"{source}: the column {twice[0]!r} stands there twice")
    if column not in found and not (column == "text" and {*TEXT_FIELDS} & {*found}):
        shown = ", ".join(map(repr, found[:20])) or "none"
        raise InputError(
            f"{source}: no column {column!r}; the columns are: {shown}; name the one "
            "with the texts (--column)"
        )
