"""Feature stores on disk: written block by block, read through a memory map.

A store is a folder of one model pair on one corpus:

    store.json                 where the features come from, k, length, block size
    texts.json                 one entry a text: id, label, split, sizes, flags
    block-00000.safetensors    a fixed number of texts, valid steps only
    manifest.json              size and SHA-256 of every file; written last

Of the `7 k + 14` columns only the packed `5 k + 3` are kept, as 16-bit floats; the ten
about the true token's losses are recomputed from 32-bit statistics. Sixteen bits keep
11 significant digits in base 2: a raw-logit difference of 8 moves by at most 0.004, a
normalised rank by at most 0.0003. Differences beyond 65,504 are clipped to it. For
k = 20 a text of 127 steps takes 31.4 kB instead of the 78.8 kB of plain 32-bit columns.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_mia_jax.errors import InputError
from lt_mia_jax.features.blocks import Block, read_block, serialize
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.files import (
    MANIFEST,
    read_json,
    sha256_file,
    verify_manifest,
    write_atomic,
    write_manifest,
)

log = logging.getLogger(__name__)

FORMAT = 1
_STORE, _TEXTS, _PROGRESS = "store.json", "texts.json", "progress.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTable:
    """What is known of the texts before extraction, one entry a text."""

    ids: Sequence[str]
    """Text ids."""

    labels: Sequence[int | None]
    """1 member, 0 non-member, None unknown."""

    split: Sequence[Literal["train", "validation", "test"]]
    """Role of the text in training a learned attack."""

    n_bytes: Sequence[int]
    """Bytes of the UTF-8 text."""

    zlib_bytes: Sequence[int]
    """Bytes of the text compressed by zlib at level 6."""

    flags: Sequence[Sequence[str]]
    """Remarks such as "truncated"."""

    def __post_init__(self) -> None:
        """Refuse columns of unequal length and unknown values."""
        sizes = {name: len(column) for name, column in vars(self).items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"columns of the text table differ in length: {sizes}")
        unknown = set(self.split) - {"train", "validation", "test"}
        if unknown or set(self.labels) - {0, 1, None}:
            raise InputError(
                f"text table: split values {sorted(unknown)} or labels other than 0, 1 "
                "and None; expected train, validation or test"
            )


class StoreWriter:
    """Appends blocks; whatever is complete survives an interruption at any moment.

    Opening the folder of an interrupted run finds the complete blocks (by SHA-256) in
    `completed_blocks`; the caller makes the others. The finished bytes do not depend
    on where a run was interrupted.
    """

    def __init__(
        self,
        directory: Path | str,
        meta: Mapping[str, Any],
        texts: TextTable,
        *,
        k: int,
        length: int,
        block_texts: int,
    ) -> None:
        """Start or continue a store.

        Args:
          directory: folder of the store; other files in it are left alone.
          meta: JSON values that say where the features come from.
          texts: the texts, in the order of the blocks.
          k: list length of the columns.
          length: tokens of a padded text.
          block_texts: texts per block (the last may have fewer).

        Raises:
          InputError: no texts, or the folder holds the store of another extraction.
        """
        self.path = Path(directory)
        self.n = len(texts.ids)
        if not self.n:
            raise InputError(f"{directory}: no texts to store; give at least one")
        self.block_texts = block_texts
        self.n_blocks = -(-self.n // block_texts)
        self._layout = FeatureLayout(k)
        self._length = length
        head = {
            "format": FORMAT,
            "k": k,
            "length": length,
            "block_texts": block_texts,
            "n": self.n,
            "meta": dict(meta),
        }
        columns = {
            name: _plain(getattr(texts, name))
            for name in (field.name for field in dataclasses.fields(texts))
        }
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_temporary_files()
        self._claim(_STORE, head)
        self._claim(_TEXTS, columns)
        self._blocks = self._surviving_blocks()
        self.finished = (self.path / MANIFEST).exists() and (
            len(self._blocks) == self.n_blocks
        )
        if not self.finished:
            self._save_progress()
            (self.path / MANIFEST).unlink(missing_ok=True)

    @property
    def completed_blocks(self) -> frozenset[int]:
        """Numbers of the blocks that are on disk and whole."""
        return frozenset(
            block for block in range(self.n_blocks) if _name(block) in self._blocks
        )

    def rows(self, block: int) -> range:
        """The texts of a block."""
        start = block * self.block_texts
        return range(start, min(start + self.block_texts, self.n))

    def append_block(
        self,
        block: int,
        statistics: TokenStatistics,
        lower_loss: Float[np.ndarray, " B"] | None = None,
    ) -> None:
        """Write one block.

        Args:
          block: its number; blocks may come in any order.
          statistics: NumPy arrays of the texts of `rows(block)`, with `columns`
            (16-bit or wider).
          lower_loss: mean loss (nats) of the lower-cased texts under the target.

        Raises:
          InputError: the statistics do not fit the store, the valid steps are not a
            prefix, or the disk is full.
        """
        expected = (len(self.rows(block)), self._length)
        if statistics.valid.shape != expected:
            raise InputError(
                f"block {block} has shape {statistics.valid.shape}; expected {expected}"
            )
        if (
            statistics.columns is None
            or statistics.columns.shape[-1] != self._layout.packed_width
        ):
            raise InputError(
                f"block {block} lacks the {self._layout.packed_width} packed columns"
            )
        data = serialize(statistics, lower_loss)
        path = self.path / _name(block)
        write_atomic(path, data)
        self._blocks[path.name] = {"bytes": len(data), "sha256": sha256_file(path)}
        self._save_progress()

    def finish(self) -> None:
        """Write the manifest, after which readers accept the store.

        Raises:
          InputError: blocks are missing.
        """
        missing = sorted(set(range(self.n_blocks)) - self.completed_blocks)
        if missing:
            raise InputError(f"{self.path}: blocks {missing} are not written yet")
        if not self.finished:
            write_manifest(self.path, [_STORE, _TEXTS, *self._blocks])
            self.finished = True
        (self.path / _PROGRESS).unlink(missing_ok=True)

    def _claim(self, name: str, value: Any) -> None:
        """Write a description, or check that the one present is the same."""
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"
        path = self.path / name
        if not path.exists():
            write_atomic(path, text)
            return
        present = read_json(path)
        wanted = json.loads(text)
        if present != wanted:
            differing = sorted(_differences(present, wanted))
            raise InputError(
                f"{path}: holds another extraction (different: "
                f"{', '.join(differing)}); choose another --out or remove this folder"
            )

    def _surviving_blocks(self) -> dict[str, dict[str, Any]]:
        records: dict[str, Any] = {}
        for name, entry in ((_PROGRESS, "blocks"), (MANIFEST, "files")):
            if (self.path / name).exists():
                records |= read_json(self.path / name)[entry]
        names = {_name(block) for block in range(self.n_blocks)}
        kept = {}
        for name in sorted(names & set(records)):
            path, record = self.path / name, records[name]
            if (
                path.is_file()
                and path.stat().st_size == record["bytes"]
                and sha256_file(path) == record["sha256"]
            ):
                kept[name] = record
            else:
                log.warning("%s is missing or damaged; it is made again", path)
        return kept

    def _save_progress(self) -> None:
        blocks = dict(sorted(self._blocks.items()))
        write_atomic(self.path / _PROGRESS, json.dumps({"blocks": blocks}))

    def _remove_temporary_files(self) -> None:
        # Left by a kill in the middle of an atomic write; never anything else's.
        for name in (_STORE, _TEXTS, _PROGRESS, MANIFEST, "block-*.safetensors"):
            for path in self.path.glob(f".{name}.*.tmp"):
                path.unlink()


class FeatureStore:
    """A finished store, read by row through a memory map."""

    def __init__(self, path: Path, head: dict[str, Any], texts: TextTable) -> None:
        """Use `FeatureStore.open`."""
        self.path = path
        self.meta: dict[str, Any] = head["meta"]
        """Where the features come from."""
        self.k: int = head["k"]
        """Length of the head and tail lists."""
        self.length: int = head["length"]
        """Tokens of a padded text."""
        self.n: int = head["n"]
        """Number of texts."""
        self.ids: tuple[str, ...] = tuple(texts.ids)
        """Text ids."""
        self.labels: tuple[int | None, ...] = tuple(texts.labels)
        """1 member, 0 non-member, None unknown."""
        self.split: tuple[str, ...] = tuple(texts.split)
        """`train`, `validation` or `test` per text."""
        self.n_bytes = np.array(texts.n_bytes, np.int64)
        """Bytes of each text."""
        self.zlib_bytes = np.array(texts.zlib_bytes, np.int64)
        """Bytes of each text after compression."""
        self.flags: list[list[str]] = [list(flags) for flags in texts.flags]
        """Remarks on each text."""
        self._block_texts: int = head["block_texts"]
        self._blocks: dict[int, Block] = {}

    @classmethod
    def open(cls, directory: Path | str, *, verify: bool = True) -> "FeatureStore":
        """Open a finished store.

        Args:
          directory: the folder.
          verify: read every file once and compare its SHA-256 (about a second per
            gigabyte); otherwise only the presence of the files is checked.

        Raises:
          InputError: the store is unfinished, or files are missing, truncated or
            changed; all of them are named.
        """
        path = Path(directory)
        if verify:
            verify_manifest(path)
        elif not (path / MANIFEST).exists():
            raise InputError(
                f"{path}: no {MANIFEST}, so it is not a finished feature store; run "
                "lt-mia extract again (it resumes)"
            )
        head = read_json(path / _STORE)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(
                f"{path / _STORE}: expected a feature store of format {FORMAT}; "
                "extract it again"
            )
        columns = read_json(path / _TEXTS)
        store = cls(path, head, TextTable(**columns))
        blocks = range(-(-store.n // store._block_texts))
        absent = [_name(b) for b in blocks if not (path / _name(b)).exists()]
        if absent:
            raise InputError(f"{path}: missing {', '.join(absent)}; extract it again")
        return store

    @property
    def name(self) -> str:
        """Name of the combination."""
        return str(self.meta.get("name", self.path.name))

    @property
    def fingerprint(self) -> str:
        """Hash of the set of text ids, as given at extraction."""
        return str(self.meta.get("fingerprint", ""))

    @property
    def layout(self) -> FeatureLayout:
        """Order of the feature columns."""
        return FeatureLayout(self.k)

    @property
    def n_steps(self) -> Int[np.ndarray, " N"]:
        """Number of valid steps of each text."""
        return np.concatenate(
            [np.zeros(0, np.int32)]
            + [np.diff(block.offsets) for block in self._all_blocks()]
        ).astype(np.int64)

    @property
    def lower_loss(self) -> Float[np.ndarray, " N"]:
        """Mean loss of the lower-cased texts under the target, NaN where not taken."""
        return np.concatenate(
            [np.zeros(0)] + [block.lower_loss for block in self._all_blocks()]
        )

    def statistics(self, rows: Any = slice(None)) -> TokenStatistics:
        """Token statistics of some texts as NumPy arrays `"B T"`, without `columns`.

        Args:
          rows: row numbers in any order, or a slice.
        """
        return self._read(rows, columns=False)

    def features(
        self, rows: Any = slice(None)
    ) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Features (float32, 7 k + 14 columns) and mask of some texts.

        Args:
          rows: row numbers in any order, or a slice.
        """
        return assemble(self._read(rows, columns=True))

    def _all_blocks(self) -> list[Block]:
        return [self._block(b) for b in range(-(-self.n // self._block_texts))]

    def _block(self, block: int) -> Block:
        if block not in self._blocks:
            self._blocks[block] = read_block(self.path / _name(block))
        return self._blocks[block]

    def _read(self, rows: Any, *, columns: bool) -> TokenStatistics:
        numbers = np.arange(self.n)[rows]
        shape = (len(numbers), self.length)
        found: dict[str, np.ndarray] = {"input_ids": np.zeros(shape, np.int32)}
        found["valid"] = np.zeros(shape, bool)
        home = numbers // self._block_texts
        # An empty request still opens a block, which says what arrays there are.
        for block in np.unique(home) if len(numbers) else [0]:
            here = np.flatnonzero(home == block)
            inside = numbers[here] - block * self._block_texts
            first, steps, arrays = self._block(int(block)).take(inside, columns=columns)
            mask = np.arange(self.length)[None, :] < steps[:, None]
            row, step = np.nonzero(mask)
            row = here[row]
            found["valid"][here] = mask
            found["input_ids"][here, 0] = first
            found["input_ids"][row, step + 1] = arrays.pop("following")
            for name, x in arrays.items():
                if name not in found:
                    dtype = np.float32 if x.dtype == np.float16 else x.dtype
                    found[name] = np.zeros((*shape, *x.shape[1:]), dtype)
                found[name][row, step] = x
        return TokenStatistics(**found)


def _name(block: int) -> str:
    return f"block-{block:05d}.safetensors"


def _plain(column: Sequence[Any]) -> list[Any]:
    """A column as JSON values."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        return value if value is None or isinstance(value, str | int) else list(value)

    return [convert(value) for value in column]


def _differences(one: Any, two: Any) -> set[str]:
    if not isinstance(one, dict) or not isinstance(two, dict):
        return {"content"}
    keys = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    if "meta" in keys:
        inner = _differences(one.get("meta"), two.get("meta"))
        keys = (keys - {"meta"}) | {f"meta.{name}" for name in inner}
    return keys
