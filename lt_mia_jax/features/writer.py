"""Writing a feature store: block by block, resumable after a kill at any moment.

Several processes may write blocks of one store, each keeping a list of its own; the
first one makes the manifest of all lists.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import is_primary, wait_for_all
from lt_mia_jax.features.blocks import serialize
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.files import (
    MANIFEST,
    file_record,
    read_json,
    write_atomic,
    write_manifest,
)

log = logging.getLogger(__name__)

FORMAT = 1
STORE, TEXTS = "store.json", "texts.json"
SIZES = "sizes"
"""Entry of the description of a store that says of what `TextTable` holds sizes:
"scored", the part of each text that was scored. Earlier versions measured whole texts,
and left the entry out."""
_PROGRESS = "progress-*.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTable:
    """What is known of the texts before extraction, one entry a text."""

    ids: Sequence[str]
    labels: Sequence[int | None] | np.ndarray
    """1 member, 0 non-member, None unknown."""
    split: Sequence[str]
    """Role in training a learned attack: train, validation or test."""
    n_bytes: Sequence[int] | np.ndarray
    """Bytes of the scored part of the text, in UTF-8."""
    zlib_bytes: Sequence[int] | np.ndarray
    """Bytes of the same compressed by zlib at level 6."""
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
        """Start or continue a store; other files of its folder are left alone.

        Args:
          directory: folder of the store.
          meta: JSON values that say where the features come from.
          texts: in the order of the blocks.
          k: length of the lists of top-k and bottom-k tokens.
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
        own = f"{jax.process_index():05d}"
        self._progress = self.path / _PROGRESS.replace("*", own)
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
        columns = {name: _plain(column) for name, column in vars(texts).items()}
        if is_primary():
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_temporary_files()
            self._claim(STORE, head)
            self._claim(TEXTS, columns)
        wait_for_all("store claimed")
        self._blocks = self._surviving_blocks()
        self.finished = (self.path / MANIFEST).exists() and (
            len(self._blocks) == self.n_blocks
        )
        wait_for_all("store read")
        if not self.finished and is_primary():
            old = [path for path in self._lists() if path != self._progress]
            self._save_progress()
            for path in [*old, self.path / MANIFEST]:
                path.unlink(missing_ok=True)
        wait_for_all("store begun")

    @property
    def completed_blocks(self) -> frozenset[int]:
        """Numbers of the blocks that are on disk and whole."""
        return frozenset(
            block for block in range(self.n_blocks) if block_name(block) in self._blocks
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
        """Write one block; they may come in any order.

        The statistics of the texts of `rows(block)` are NumPy arrays with `columns`
        (16-bit or wider), `lower_loss` is the mean loss (nats) of the lower-cased texts
        under the target.

        Raises:
          InputError: the statistics do not fit the store, the valid steps are not a
            prefix, or the disk is full.
        """
        expected = (len(self.rows(block)), self._length)
        if statistics.valid.shape != expected:
            raise InputError(
                f"block {block} has shape {statistics.valid.shape}; expected {expected}"
            )
        columns, width = statistics.columns, self._layout.packed_width
        if columns is None or columns.shape[-1] != width:
            raise InputError(f"block {block} lacks the {width} packed columns")
        path = self.path / block_name(block)
        # Token ids are the texts.
        write_atomic(path, serialize(statistics, lower_loss), private=True)
        self._blocks[path.name] = file_record(path)
        self._save_progress()

    def finish(self) -> None:
        """Write the manifest, after which readers accept the store.

        Raises:
          InputError: blocks are missing.
        """
        wait_for_all("blocks written")
        if is_primary():
            self._finish()
        wait_for_all("store finished")

    def _finish(self) -> None:
        self._blocks |= self._listed()
        missing = sorted(set(range(self.n_blocks)) - self.completed_blocks)
        if missing:
            raise InputError(f"{self.path}: blocks {missing} are not written yet")
        if not self.finished:
            write_manifest(self.path, [STORE, TEXTS, *self._blocks])
            self.finished = True
        for path in self._lists():
            path.unlink()

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
            if "meta." + SIZES in _differences(present, wanted):
                raise InputError(
                    f"{path}: made by an earlier version, which measured whole texts "
                    "where only a part was scored; choose another --out or remove this "
                    "folder"
                )
            differing = ", ".join(sorted(_differences(present, wanted)))
            raise InputError(
                f"{path}: holds another extraction (different: {differing}); choose "
                "another --out or remove this folder"
            )

    def _surviving_blocks(self) -> dict[str, dict[str, Any]]:
        records = self._listed()
        if (self.path / MANIFEST).exists():
            records |= _entry(self.path / MANIFEST, "files")
        names = {block_name(block) for block in range(self.n_blocks)}
        kept = {}
        for name in sorted(names & set(records)):
            path = self.path / name
            if path.is_file() and file_record(path) == records[name]:
                kept[name] = records[name]
            else:
                log.warning("%s is missing or damaged; it is made again", path)
        return kept

    def _save_progress(self) -> None:
        blocks = dict(sorted(self._blocks.items()))
        write_atomic(self._progress, json.dumps({"blocks": blocks}))

    def _lists(self) -> list[Path]:
        return sorted(self.path.glob(_PROGRESS))

    def _listed(self) -> dict[str, dict[str, Any]]:
        """What the lists of all processes say of blocks."""
        found: dict[str, dict[str, Any]] = {}
        for path in self._lists():
            found |= _entry(path, "blocks")
        return found

    def _remove_temporary_files(self) -> None:
        # Left by a kill in the middle of an atomic write; never anything else's.
        for name in (STORE, TEXTS, _PROGRESS, MANIFEST, "block-*.safetensors"):
            for path in self.path.glob(f".{name}.*.tmp"):
                path.unlink()


def block_name(block: int) -> str:
    """File name of a block."""
    return f"block-{block:05d}.safetensors"


def _plain(column: Sequence[Any] | np.ndarray) -> list[Any]:
    """A column as JSON values."""

    def convert(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        return value if value is None or isinstance(value, str | int) else list(value)

    return [convert(value) for value in column]


def _entry(path: Path, name: str) -> dict[str, Any]:
    content = read_json(path)
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: no object {name!r} in it; remove the folder and extract again"
        )
    return found


def _differences(one: Any, two: Any) -> set[str]:
    if not isinstance(one, dict) or not isinstance(two, dict):
        return {"content"}
    keys = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    if "meta" in keys:
        inner = _differences(one.get("meta"), two.get("meta"))
        keys = (keys - {"meta"}) | {f"meta.{name}" for name in inner}
    return keys
