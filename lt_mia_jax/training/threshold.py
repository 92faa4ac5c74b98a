"""Exact order statistics of a tree, by counting.

Nothing is gathered or sorted, so sharding is preserved: 31 counts find any threshold,
and each count is one reduction over devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Int, UInt
from lt_mia_jax.trees import parameter_count

Tree = Any
"""A pytree of arrays."""

_DIGIT = 16
_LOW = 2**_DIGIT - 1
_ABOVE_ALL = 0x7FFFFFFF


def largest(scores: Tree, kept: int) -> Tree:
    """True on the `kept` largest of all non-negative scores; ties are all kept."""
    limit = threshold_bits(scores, kept)
    return jax.tree.map(lambda s: bits(s) >= limit, scores)


def top_share_mask(scores: Tree, share: float) -> Tree:
    """True on the `round(share * n)` largest of all `n` scores of the tree.

    Ties at the threshold are all kept.

    Scores are not negative, such as a saliency.

    Raises:
      ValueError: `share` is outside [0, 1].

    Source: SalUn, arXiv 2310.12508, equation 3 (share 0.5).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}, expected in [0, 1]")
    return largest(scores, round(share * parameter_count(scores)))


def bits(scores: Array) -> Int[Array, "..."]:
    """Integers in the order of the magnitudes."""
    # The sign goes as a bit: float arithmetic may flush subnormal numbers to zero.
    signed = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    return signed & _ABOVE_ALL


def threshold_bits(scores: Tree, kept: int) -> Int[Array, ""]:
    """The `kept`-th largest of all magnitudes, exactly, as `bits` has it.

    Built bit by bit from the top; for `kept` 0 a number above all of them.

    Raises:
      ValueError: `kept` is not between 0 and the number of elements.

    Source: the order of IEEE 754 bit patterns; selection by bisection.
    """
    if not 0 <= kept <= parameter_count(scores):
        raise ValueError(f"kept = {kept}, expected 0 to {parameter_count(scores)}")
    if kept == 0:
        return jnp.int32(_ABOVE_ALL)
    return _search(scores, jnp.uint32(kept >> _DIGIT), jnp.uint32(kept & _LOW))


@jax.jit
def _search(
    scores: Tree, high: UInt[Array, ""], low: UInt[Array, ""]
) -> Int[Array, ""]:
    """The largest bits that at least so many scores reach, from the top bit down."""

    def refine(step: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.int32(1), 30 - step)
        count = _count(jax.tree.map(lambda s: bits(s) >= candidate, scores))
        enough = (count[0] > high) | ((count[0] == high) & (count[1] >= low))
        return jnp.where(enough, candidate, found)

    return jax.lax.fori_loop(0, 31, refine, jnp.int32(0))


Count = tuple[Array, Array]
"""A number as two uint32 digits of base 2^16, high and low: there may be more elements
than a 32-bit integer counts, and float32 is exact to 2^24 only."""


def _count(mask: Tree) -> Count:
    """How many elements of the tree are True."""
    counts = [_leaf_count(leaf) for leaf in jax.tree.leaves(mask)]
    high = sum((c[0] for c in counts), start=jnp.uint32(0))
    low = sum((c[1] for c in counts), start=jnp.uint32(0))
    return _carried(high, low)


def _leaf_count(mask: Bool[Array, "..."], limit: int = 2**31) -> Count:
    """The same for one array; from `limit` elements on, axis by axis.

    Exact when no axis but the longest has more than 2^16 elements.
    """
    if mask.size < limit:
        return _digits(jnp.sum(mask, dtype=jnp.int32).astype(jnp.uint32))
    longest = max(range(mask.ndim), key=lambda axis: mask.shape[axis])
    high, low = _digits(jnp.sum(mask, axis=longest, dtype=jnp.uint32))
    while low.ndim:
        high, low = _carried(high.sum(axis=0), low.sum(axis=0))
    return high, low


def _digits(count: UInt[Array, "..."]) -> Count:
    return count >> _DIGIT, count & _LOW


def _carried(high: Array, low: Array) -> Count:
    return high + (low >> _DIGIT), low & _LOW
