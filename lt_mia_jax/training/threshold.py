"""Exact order statistics of a tree, by counting.

In compiled programs and on accelerators nothing is gathered or sorted, so sharding is
preserved: 31 counts find any threshold, and each count is one reduction over devices.
Arrays in the memory or the files of this host are read leaf by leaf, twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lt_mia_jax.arrays import Array, Bool, Float, Int, UInt
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


def threshold_bits(
    scores: Tree, kept: int, minus: Tree | None = None
) -> Int[Array, ""]:
    """The `kept`-th largest of all magnitudes, exactly, as `bits` has it.

    Built bit by bit from the top; for `kept` 0 a number above all of them. With
    `minus`, a tree like `scores`, the magnitudes are those of the float32 differences;
    on the host these are never all in memory.

    Raises:
      ValueError: `kept` is not between 0 and the number of elements.

    Source: the order of IEEE 754 bit patterns; selection by bisection or by digits.
    """
    _check_kept(scores, kept)
    if kept == 0:
        return jnp.int32(_ABOVE_ALL)
    if _on_host((scores, minus)):
        return _count_digits([scores], minus, kept)[0].limit
    return _search(scores, minus, jnp.uint32(kept >> _DIGIT), jnp.uint32(kept & _LOW))


def _check_kept(scores: Tree, kept: int) -> None:
    if not 0 <= kept <= parameter_count(scores):
        raise ValueError(f"kept = {kept}, expected 0 to {parameter_count(scores)}")


@jax.jit
def _search(
    scores: Tree, minus: Tree, high: UInt[Array, ""], low: UInt[Array, ""]
) -> Int[Array, ""]:
    """The largest bits that at least so many scores reach, from the top bit down."""

    def refine(step: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.int32(1), 30 - step)
        found_bits = _all_bits(scores, minus)
        count = _count(jax.tree.map(lambda s: s >= candidate, found_bits))
        enough = (count[0] > high) | ((count[0] == high) & (count[1] >= low))
        return jnp.where(enough, candidate, found)

    return jax.lax.fori_loop(0, 31, refine, jnp.int32(0))


def _all_bits(scores: Tree, minus: Tree | None) -> Tree:
    if minus is None:
        return jax.tree.map(bits, scores)
    return jax.tree.map(lambda s, m: bits(difference(s, m)), scores, minus)


def difference(one: Array, other: Array) -> Float[Array, "..."]:
    """`one - other` in float32."""
    return one.astype(jnp.float32) - other.astype(jnp.float32)


class Selection(NamedTuple):
    """Which elements of a tree are the `kept` largest, ties broken by position."""

    limit: Int[Array, ""]
    """`bits` of the smallest magnitude that is kept."""
    room: Tree
    """How many elements equal to the limit each leaf keeps, the first ones."""


def selection(scores: Tree, kept: int, minus: Tree | None = None) -> Selection:
    """The `kept` largest magnitudes, no more: of equal ones the first in the tree.

    The order is that of `jax.tree.leaves`, then of the flat index. Arguments and errors
    are those of `threshold_bits`; exact up to 2^32 equal magnitudes at the limit.

    Example:
      >>> import jax.numpy as jnp
      >>> from lt_mia_jax.training.threshold import exactly, selection
      >>> tree = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([2.0, -2.0])}
      >>> exactly(tree, selection(tree, 2))
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    return selections([scores], kept, minus)[0]


def selections(
    trees: Sequence[Tree], kept: int, minus: Tree | None = None
) -> list[Selection]:
    """`selection` of each of some trees; on the host `minus` is read with all at once.

    Errors are those of `threshold_bits`.
    """
    for scores in trees:
        _check_kept(scores, kept)
    if kept and _on_host((trees, minus)):
        return _count_digits(trees, minus, kept)
    return [_searched(scores, kept, minus) for scores in trees]


def _searched(scores: Tree, kept: int, minus: Tree | None) -> Selection:
    limit = threshold_bits(scores, kept, minus)
    return Selection(limit, _rooms(scores, minus, limit, kept >> _DIGIT, kept & _LOW))


@jax.jit
def _rooms(scores: Tree, minus: Tree, limit: Array, high: Array, low: Array) -> Tree:
    magnitudes = _all_bits(scores, minus)
    above = _count(jax.tree.map(lambda m: m > limit, magnitudes))
    room = _number(jnp.uint32(high) - above[0], jnp.uint32(low) - above[1])
    leaves, structure = jax.tree.flatten(magnitudes)
    rooms = []
    for leaf in leaves:
        equal = _number(*leaf_count(leaf == limit))
        rooms.append(jnp.minimum(room, equal))
        room = room - rooms[-1]
    return jax.tree.unflatten(structure, rooms)


def _number(high: Array, low: Array) -> UInt[Array, ""]:
    """The count of two digits, modulo 2^32."""
    return (high << _DIGIT) + low


def exactly(scores: Tree, chosen: Selection) -> Tree:
    """True on the elements of a selection; `scores` may be differences made again."""
    return jax.tree.map(
        lambda leaf, room: exactly_leaf(leaf, chosen.limit, room), scores, chosen.room
    )


def exactly_leaf(
    scores: Array, limit: Int[Array, ""], room: UInt[Array, ""]
) -> Bool[Array, "..."]:
    """True above the limit and on the first `room` elements that are equal to it.

    Axis by axis, so that what is in memory is the mask, and sharding is preserved: of
    the slices along an axis some are whole, and at most one is continued within.
    """
    found = bits(scores)
    within = found == limit
    first = within & (room > 0) if scores.ndim == 0 else jnp.zeros_like(within)
    for axis in range(scores.ndim):
        others = tuple(other for other in range(scores.ndim) if other != axis)
        counts = jnp.sum(within, axis=others, dtype=jnp.uint32)
        reached = jnp.cumsum(counts, dtype=jnp.uint32)
        whole = reached <= room
        partly = ~whole & (reached - counts < room)
        first |= within & jnp.expand_dims(whole, others)
        within &= jnp.expand_dims(partly, others)
        room = room - jnp.sum(jnp.where(partly, reached - counts, 0), dtype=jnp.uint32)
    return (found > limit) | first


_CHUNK = 2**18
"""Elements of which digits are counted at a time: they stay in the cache."""
_HALF = 15
"""Bits of the lower of two digits, of 31."""


def _on_host(tree: Tree) -> bool:
    """Whether NumPy can read all leaves in this process: from memory, or a file."""
    return all(
        not isinstance(leaf, jax.Array)
        or (
            not isinstance(leaf, Tracer)
            and leaf.is_fully_addressable
            and all(device.platform == "cpu" for device in leaf.devices())
        )
        for leaf in jax.tree.leaves(tree)
    )


def _count_digits(
    trees: Sequence[Tree], minus: Tree | None, kept: int
) -> list[Selection]:
    """`selections` by NumPy: two histograms of 16 and 15 bits.

    XLA's reductions on CPU store what they count, for all leaves at once, and 31 of
    them took ten times as long (135 million differences, two cores).
    """
    structure = jax.tree.structure(trees[0])
    leaves = list(zip(*map(jax.tree.leaves, trees), strict=True))
    others = [None] * len(leaves) if minus is None else jax.tree.leaves(minus)
    pairs = list(zip(leaves, others, strict=True))
    highs = np.zeros((len(trees), 2**16), np.int64)
    for pair in pairs:
        for tree, found in _chunks(*pair):
            highs[tree] += np.bincount(found >> _HALF, minlength=2**16)
    tops = [_reached(high, kept) for high in highs]
    lows = np.zeros((len(pairs), len(trees), 2**_HALF), np.int64)
    for counts, pair in zip(lows, pairs, strict=True):
        for tree, found in _chunks(*pair):
            low = found[found >> _HALF == tops[tree][0]] & (2**_HALF - 1)
            counts[tree] += np.bincount(low, minlength=2**_HALF)
    return [
        _selected(lows[:, tree], *tops[tree], kept, structure)
        for tree in range(len(trees))
    ]


def _selected(
    lows: Int[np.ndarray, "leaves D"], top: int, above: int, kept: int, structure: Any
) -> Selection:
    """The selection of one tree, from how often each leaf has each lower digit."""
    bottom, more = _reached(lows.sum(axis=0), kept - above)
    room, rooms = kept - above - more, []
    for count in lows[:, bottom]:
        rooms.append(min(room, int(count)))
        room -= rooms[-1]
    limit = jnp.int32(top << _HALF | bottom)
    return Selection(limit, structure.unflatten([jnp.uint32(r) for r in rooms]))


def _reached(counts: Int[np.ndarray, "D"], kept: int) -> tuple[int, int]:
    """The digit of the `kept`-th largest, and how many have a larger one."""
    total = np.cumsum(counts[::-1])
    place = int(np.searchsorted(total, kept))
    return len(counts) - 1 - place, int(total[place - 1]) if place else 0


def _chunks(
    leaves: Sequence[Any], minus: Any
) -> Iterator[tuple[int, Int[np.ndarray, "N"]]]:
    """`bits` of the magnitudes of one leaf of each tree, part by part, in any order."""
    other = None if minus is None else np.asarray(minus)
    for tree, leaf in enumerate(leaves):
        flat, less = _flat(np.asarray(leaf), other)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float32)
            if less is not None:
                part -= less[start : start + _CHUNK].astype(np.float32, copy=False)
            yield tree, part.view(np.int32) & _ABOVE_ALL


def _flat(
    one: np.ndarray, other: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Two arrays as vectors, with no copy if both are transposed ones."""
    if one.flags.f_contiguous and (other is None or other.flags.f_contiguous):
        one, other = one.T, None if other is None else other.T
    return one.reshape(-1), None if other is None else other.reshape(-1)


Count = tuple[Array, Array]
"""A number as two uint32 digits of base 2^16, high and low: there may be more elements
than a 32-bit integer counts, and float32 is exact to 2^24 only."""


def _count(mask: Tree) -> Count:
    """How many elements of the tree are True."""
    return total([leaf_count(leaf) for leaf in jax.tree.leaves(mask)])


def total(counts: Sequence[Count]) -> Count:
    """The sum of counts."""
    high = sum((c[0] for c in counts), start=jnp.uint32(0))
    low = sum((c[1] for c in counts), start=jnp.uint32(0))
    return carried(high, low)


def sign_counts(signs: Float[Array, "..."]) -> tuple[Count, Count]:
    """How many signs of one array are positive, and negative."""
    return leaf_count(signs > 0), leaf_count(signs < 0)


@jax.jit
def majority_sign(counts: Sequence[tuple[Count, Count]]) -> Float[Array, ""]:
    """The sign of the sum of all signs, from the counts of each leaf; plus for 0."""
    (high, low), (negative_high, negative_low) = map(total, zip(*counts, strict=True))
    fewer = (high < negative_high) | ((high == negative_high) & (low < negative_low))
    return jnp.where(fewer, -1.0, 1.0).astype(jnp.float32)


def leaf_count(mask: Bool[Array, "..."], limit: int = 2**31) -> Count:
    """How many elements of one array are True; from `limit` elements on, axis by axis.

    Exact when no axis but the longest has more than 2^16 elements.
    """
    if mask.size < limit:
        return _digits(jnp.sum(mask, dtype=jnp.int32).astype(jnp.uint32))
    longest = max(range(mask.ndim), key=lambda axis: mask.shape[axis])
    high, low = _digits(jnp.sum(mask, axis=longest, dtype=jnp.uint32))
    while low.ndim:
        high, low = carried(high.sum(axis=0), low.sum(axis=0))
    return high, low


def _digits(count: UInt[Array, "..."]) -> Count:
    return count >> _DIGIT, count & _LOW


def carried(high: Array, low: Array) -> Count:
    """A count whose lower digit may have grown beyond 2^16, such as a sum."""
    return high + (low >> _DIGIT), low & _LOW
