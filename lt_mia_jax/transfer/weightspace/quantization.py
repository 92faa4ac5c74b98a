"""Grouped round-to-nearest quantization of arrays, with codes packed into bytes."""

from dataclasses import field
from typing import Any

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, UInt
from lt_mia_jax.trees import pytree

BITS = (2, 4, 8, 32)
"""Bits a value. 32 is float32 itself; fewer are integer codes with scales."""

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Fractions of a group's largest magnitude that may become its range."""


@pytree
class Quantized:
    """An array of small numbers; `dequantize` returns its values in float32.

    A code c of b bits stands for `(c - (2^b - 1) / 2) * scale * unit`.
    """

    codes: Array | np.ndarray
    """uint8 "... G S*b/8": the codes of G groups of S values, the first of a byte in
    its lowest bits. For 32 bits the values."""
    scales: Float[Array | np.ndarray, "... G"]
    """Float16, at most 1; empty for 32 bits."""
    unit: Float[Array | np.ndarray, ""]
    """The largest scale, float32, so that float16 does not underflow."""
    bits: int = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    """Values on the last axis; the last group may be padded."""


def groups(length: int, bits: int, group: int) -> tuple[int, int]:
    """Number of groups, as equal as possible, and values in each, in whole bytes."""
    number = max(1, -(-length // group))
    size = -(-length // number)
    per_byte = 8 // bits
    return number, -(-size // per_byte) * per_byte


def quantize(
    values: Float[Array | np.ndarray, "... N"], bits: int, group: int = 128
) -> Quantized:
    """Round each value to one of `2^bits` equidistant levels around zero.

    The range of each group of values on the last axis is the one of `CLIPS` with the
    smallest squared error. Groups of zeros are exact. Runs on the host, in NumPy.
    """
    if bits not in BITS or group < 1:
        raise ValueError(f"bits = {bits}, group = {group}; bits are one of {BITS}")
    x = np.asarray(values).astype(np.float32)
    length = x.shape[-1]
    if bits == 32:
        empty = np.zeros((*x.shape[:-1], 0), np.float16)
        return Quantized(x, empty, np.ones((), np.float32), bits, length)
    number, size = groups(length, bits, group)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, number * size - length)]
    grouped = np.pad(x, padding).reshape(*x.shape[:-1], number, size)
    real = np.arange(number * size).reshape(number, size) < length
    middle, largest = _middle(bits), np.abs(grouped).max(axis=-1) / _middle(bits)
    unit = largest.max(initial=0.0)
    error = np.full(largest.shape, np.inf, np.float32)
    scales, codes = np.zeros_like(largest, np.float16), np.zeros_like(grouped, np.uint8)
    for clip in CLIPS:
        tried = (clip * largest / _positive(unit)).astype(np.float16)
        step = (tried.astype(np.float32) * unit)[..., None]
        found = np.clip(np.round(grouped / _positive(step) + middle), 0, 2 * middle)
        wrong = np.square((found - middle) * step - grouped).sum(axis=-1, where=real)
        better = wrong < error
        error = np.where(better, wrong, error)
        scales = np.where(better, tried, scales)
        codes = np.where(better[..., None], found.astype(np.uint8), codes)
    unit = np.asarray(unit, np.float32)
    return Quantized(_pack(codes, bits), scales, unit, bits, length)


def dequantize(found: Quantized) -> Any:
    """The values "... N" of the codes, in float32; NumPy for NumPy arrays."""
    if found.bits == 32:
        return found.codes
    codes = _unpack(found.codes, found.bits).astype(np.float32) - _middle(found.bits)
    step = found.scales.astype(np.float32) * found.unit
    values = codes * step[..., None]
    return values.reshape(*values.shape[:-2], -1)[..., : found.length]


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _middle(bits: int) -> float:
    return (2**bits - 1) / 2


def _positive(x: Any) -> Any:
    return np.where(x > 0, x, np.float32(1))


def _pack(codes: UInt[np.ndarray, "... S"], bits: int) -> UInt[np.ndarray, "... P"]:
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    return (parts << shifts).sum(axis=-1, dtype=np.uint8)


def _unpack(packed: Any, bits: int) -> Any:
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    shifts = shifts.reshape(*(1,) * packed.ndim, -1)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)
