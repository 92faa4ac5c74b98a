"""Feature stores on disk: written block by block, read through a memory map.

A store is a folder of one model pair on one corpus:

    store.json                 where the features come from, k, length, block size
    texts.json                 one entry a text: id, label, split, sizes, flags
    block-00000.safetensors    a fixed number of texts, valid steps only
    manifest.json              size and SHA-256 of every file; written last

Of the `7 k + 14` columns only the packed `5 k + 3` are kept, as 16-bit floats; the ten
about the true token's losses are recomputed from 32-bit statistics. Sixteen bits keep
11 significant digits in base 2: a raw-logit difference of 8 moves by at most 0.004, a
normalized rank by at most 0.0003. Differences beyond 65,504 are clipped to it. For
k = 20 a text of 127 steps takes 31.4 kB instead of the 78.8 kB of plain 32-bit columns.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_mia_jax.configs import read_record, refuse
from lt_mia_jax.errors import InputError, between
from lt_mia_jax.features.blocks import Block, read_block
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.features.writer import (
    FORMAT,
    SIZES,
    STORE,
    TEXTS,
    TextTable,
    block_name,
)
from lt_mia_jax.files import MANIFEST, read_json, verify_manifest


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What `store.json` must hold."""

    meta: Mapping[str, Any]
    k: Annotated[int, between(1, 10**4)]
    length: Annotated[int, between(1, 10**7)]
    n: Annotated[int, between(1, 10**9)]
    block_texts: Annotated[int, between(1, 10**9)]


def _not_finite(head: dict[str, Any]) -> list[str]:
    try:
        json.dumps(head, allow_nan=False)
    except ValueError:
        return ["a number is infinite or NaN"]
    return []


_COLUMNS: dict[str, tuple[type, ...]] = {
    "ids": (str,),
    "labels": (int, type(None)),
    "split": (str,),
    "n_bytes": (int,),
    "zlib_bytes": (int,),
    "flags": (list,),
}


def _read_texts(path: Path, count: int) -> TextTable:
    """The columns of `texts.json`."""
    columns = read_json(path)
    if not isinstance(columns, dict) or columns.keys() != _COLUMNS.keys():
        raise InputError(f"{path}: expected {', '.join(_COLUMNS)}; extract it again")
    wrong = [
        name
        for name, kinds in _COLUMNS.items()
        if not isinstance(columns[name], list)
        or len(columns[name]) != count
        or not {type(entry) for entry in columns[name]} <= set(kinds)
    ]
    if not wrong:
        sizes = [*columns["n_bytes"], *columns["zlib_bytes"]]
        if not all(0 <= size < 2**53 for size in sizes):
            wrong = ["n_bytes or zlib_bytes"]
        if any(type(flag) is not str for flags in columns["flags"] for flag in flags):
            wrong = ["flags"]
    if wrong:
        raise InputError(
            f"{path}: {', '.join(wrong)} not {count} entries of the right type; "
            "extract it again"
        )
    try:
        return TextTable(**columns)
    except InputError as error:
        raise InputError(f"{path}: {error}; extract it again") from error


class FeatureStore:
    """A finished store, read by row through a memory map.

    Example:
      >>> import jax, numpy
      >>> from lt_mia_jax import FeatureStore, token_statistics
      >>> from lt_mia_jax.features import StoreWriter, TextTable
      >>> logits = jax.random.normal(jax.random.key(0), (2, 1, 4, 50))
      >>> ids = numpy.array([[3, 1, 4, 0]])
      >>> stats = token_statistics(*logits, ids, numpy.array([[1, 1, 1, 0]]), k=5)
      >>> columns = {"ids": ["a"], "labels": [1], "split": ["test"], "flags": [[]]}
      >>> texts = TextTable(**columns, n_bytes=[9], zlib_bytes=[17])
      >>> sizes = {"k": 5, "length": 4, "block_texts": 8}
      >>> writer = StoreWriter("store", {"name": "tiny"}, texts, **sizes)
      >>> writer.append_block(0, jax.tree.map(numpy.asarray, stats))
      >>> writer.finish()
      >>> store = FeatureStore.open("store")
      >>> features, mask = store.features(numpy.array([0]))
      >>> store.name, features.shape, int(mask.sum())
      ('tiny', (1, 4, 49), 2)
    """

    def __init__(self, path: Path, head: dict[str, Any], texts: TextTable) -> None:
        """Use `FeatureStore.open`."""
        self.path = path
        self.meta: dict[str, Any] = head["meta"]
        """Where the features come from."""
        self.k: int = head["k"]
        """Length of the lists of top-k and bottom-k tokens."""
        self.length: int = head["length"]
        """Tokens of a padded text."""
        self.n: int = head["n"]
        """Number of texts."""
        # The columns of `TextTable`.
        self.ids: tuple[str, ...] = tuple(texts.ids)
        self.labels: tuple[int | None, ...] = tuple(texts.labels)
        self.split: tuple[str, ...] = tuple(texts.split)
        self.n_bytes = np.array(texts.n_bytes, np.int64)
        self.flags: list[list[str]] = [list(flags) for flags in texts.flags]
        self.zlib_bytes = np.array(texts.zlib_bytes, np.float64)
        """NaN where an earlier version compressed more than was scored."""
        if SIZES not in self.meta:
            self.zlib_bytes[["truncated" in flags for flags in self.flags]] = np.nan
        self._block_texts: int = head["block_texts"]
        self._blocks: dict[int, Block] = {}

    @classmethod
    def open(cls, directory: Path | str, *, verify: bool = True) -> "FeatureStore":
        """Open a finished store.

        To verify is to read every file once and compare its SHA-256 (about a second per
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
        head = read_json(path / STORE)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(
                f"{path / STORE}: expected a feature store of format {FORMAT}; "
                "extract it again"
            )
        record, problems = read_record(_Head, head)
        problems += _not_finite(head)
        refuse(path / STORE, problems, "Extract it again")
        store = cls(path, head, _read_texts(path / TEXTS, record.n))
        blocks = range(-(-store.n // store._block_texts))
        absent = [block_name(b) for b in blocks if not (path / block_name(b)).exists()]
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
        return np.concatenate([np.diff(block.offsets) for block in self._all_blocks()])

    @property
    def lower_loss(self) -> Float[np.ndarray, " N"]:
        """Mean loss of the lower-cased texts under the target, NaN where not taken."""
        return np.concatenate([block.lower_loss for block in self._all_blocks()])

    def statistics(self, rows: Any = slice(None)) -> TokenStatistics:
        """Token statistics of some texts as NumPy arrays `"B T"`, without `columns`.

        `rows` are row numbers in any order, or a slice; so in `features`.
        """
        return self._read(rows, columns=False)

    def features(
        self, rows: Any = slice(None)
    ) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Features (float32, 7 k + 14 columns) and mask of some texts."""
        return assemble(self._read(rows, columns=True))

    def _all_blocks(self) -> list[Block]:
        return [self._block(b) for b in range(-(-self.n // self._block_texts))]

    def _block(self, block: int) -> Block:
        if block not in self._blocks:
            found = read_block(self.path / block_name(block))
            rest = self.n - block * self._block_texts
            sizes = len(found.first), int(np.diff(found.offsets).max(initial=0))
            if sizes[0] != min(rest, self._block_texts) or sizes[1] >= self.length:
                raise InputError(
                    f"{self.path / block_name(block)}: {sizes[0]} texts of up to "
                    f"{sizes[1]} steps, which {STORE} does not describe; extract again"
                )
            self._blocks[block] = found
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
