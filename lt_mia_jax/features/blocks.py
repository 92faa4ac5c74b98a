"""One block of a feature store: ragged arrays in a safetensors file.

Every array of a block runs over the valid steps of its texts, one text after the
other, so the steps of consecutive texts are one contiguous range.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import save

from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.files import parse_json

HALF_MAX = 65504.0
"""Largest finite 16-bit float."""

_STEP_ARRAYS = {
    "lp_t": "target_log_prob",
    "lp_r": "reference_log_prob",
    "mu_t": "target_mean",
    "var_t": "target_var",
    "mu_r": "reference_mean",
    "xmu": "cross_mean",
    "xvar": "cross_var",
}
"""Names in the file, and the fields of `TokenStatistics`."""
_RANKS = {"rank_t": "target_rank", "rank_r": "reference_rank"}
_FIELDS = _STEP_ARRAYS | _RANKS
_DTYPES = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}


class Block(NamedTuple):
    """Memory-mapped arrays of one block."""

    first: Int[np.ndarray, " B"]
    """First token of each text; no step predicts it."""
    offsets: Int[np.ndarray, " B1"]
    """Steps of text i stand in `[offsets[i], offsets[i + 1])`."""
    lower_loss: Float[np.ndarray, " B"]
    steps: dict[str, np.ndarray]
    """Arrays over the valid steps of all texts, `hits` as packed bits."""

    def take(
        self, rows: Int[np.ndarray, " R"], *, columns: bool
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """First token, number of steps, and the joined step arrays of some texts."""
        starts, counts = self.offsets[rows], np.diff(self.offsets)[rows]
        total = int(counts.sum())
        ends = np.cumsum(counts)
        index = np.repeat(starts - (ends - counts), counts) + np.arange(total)
        where: Any = index
        if total and index[-1] - index[0] == total - 1 and (np.diff(index) == 1).all():
            where = slice(int(index[0]), int(index[-1]) + 1)  # one sequential read
        out = {
            name: np.asarray(x[where])
            for name, x in self.steps.items()
            if name != "hits" and (columns or name != "columns")
        }
        byte = np.asarray(self.steps["hits"][index // 8])
        out["target_top1"] = (byte >> (7 - index % 8).astype(np.uint8) & 1).astype(bool)
        return self.first[rows], counts, out


def serialize(
    statistics: TokenStatistics, lower_loss: Float[np.ndarray, " B"] | None
) -> bytes:
    """The bytes of a block: valid steps only, columns as 16-bit floats.

    Raises:
      InputError: valid steps are not a prefix, or the columns hold NaN.
    """
    valid = np.asarray(statistics.valid)
    counts = valid.sum(axis=1)
    if not (valid == (np.arange(valid.shape[1])[None, :] < counts[:, None])).all():
        raise InputError("valid steps must be a prefix; pad texts on the right")
    ids = np.asarray(statistics.input_ids, np.int32)
    following = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    columns = np.asarray(statistics.columns)[valid]
    if np.isnan(columns).any():
        raise InputError("the LT-MIA columns hold NaN; the models' logits are broken")
    arrays = {
        "n_steps": counts.astype(np.int32),
        "first": ids[:, 0],
        "following": following[valid],
        "hits": np.packbits(np.asarray(statistics.target_top1)[valid]),
        "columns": np.clip(columns, -HALF_MAX, HALF_MAX).astype(np.float16),
    }
    for names, dtype in ((_STEP_ARRAYS, np.float32), (_RANKS, np.int32)):
        for name, field in names.items():
            arrays[name] = np.asarray(getattr(statistics, field))[valid].astype(dtype)
    if lower_loss is not None:
        arrays["lower_loss"] = np.asarray(lower_loss, np.float32)
    return save({name: np.ascontiguousarray(x) for name, x in arrays.items()})


def read_block(path: Path) -> Block:
    """Map a block into memory; small arrays are read.

    Raises:
      InputError: not a block, or truncated.
    """
    try:
        arrays = _map_safetensors(path)
        n_steps, first = (np.array(arrays.pop(name)) for name in ("n_steps", "first"))
        lower = np.array(arrays.pop("lower_loss", np.full(len(first), np.nan)))
        missing = {*_FIELDS, "columns", "following", "hits"} - set(arrays)
        if missing:
            raise ValueError(f"no array {', '.join(sorted(missing))}")
        rows = {len(x) for name, x in arrays.items() if name != "hits"}
        if rows != {int(n_steps.sum())} or (n_steps < 0).any():
            raise ValueError(f"arrays of {sorted(rows)} rows for {n_steps.sum()} steps")
        if not len(n_steps) == len(first) == len(lower):
            raise ValueError(f"{len(n_steps)}, {len(first)}, {len(lower)} texts")
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a readable block of a feature store ({error}); extract again"
        ) from error
    offsets = np.concatenate([[0], np.cumsum(n_steps, dtype=np.int64)])
    steps = {_FIELDS.get(name, name): x for name, x in arrays.items()}
    return Block(first, offsets, lower.astype(np.float64), steps)


def _map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file as views of one memory map.

    Source: the safetensors format: 8 bytes header length (little-endian), a JSON
    header with dtype, shape and offsets, then the data.
    """
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    if start > len(data):
        raise ValueError("truncated header")
    header = parse_json(data[8:start].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        if end > len(data):
            raise ValueError(f"truncated array {name}")
        piece = data[begin:end].view(_DTYPES[entry["dtype"]])
        arrays[name] = piece.reshape(entry["shape"])
    return arrays
