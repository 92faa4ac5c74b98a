"""Lottery-ticket sparse fine-tuning: a few entries are trained, and such deltas add up.

A fine-tune of everything shows which entries move most (`lt_mask`). Training starts
again from the base with only these (`training.transforms.saliency_masked` around the
optimizer, so that weight decay moves no other). What they gained is a sparse delta.

Source: "Composable Sparse Fine-Tuning for Cross-Lingual Transfer" (LT-SFT), as used by
BiStil (see `trim`). Kept: mask, rewind, masked training, composition, several rounds.
Not kept: the L1 penalty, which the paper names optional.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.training.threshold import difference, exactly, selection
from lt_mia_jax.transfer.weightspace.roles import PROTECTED, Tree, role, shifted
from lt_mia_jax.trees import map_named, named_leaves, parameter_count


def trainable(path: str) -> bool:
    """Whether a parameter may be trained: not norms or constants of recurrences."""
    return role(path) not in PROTECTED


def lt_mask(
    theta1: Tree,
    theta0: Tree,
    k: int,
    include: Callable[[str], bool] = trainable,
    *,
    taken: Tree | None = None,
) -> Tree:
    """True on exactly the `k` entries that a fine-tune of `theta0` moved most.

    Of equal distances the first in the tree are chosen, and only entries of paths that
    `include` accepts; fewer than `k` of them is a ValueError. `taken` is the mask of
    earlier rounds: `k` further entries are chosen, and the result has both.

    Example:
      >>> lt_mask({"head": jnp.array([1.0, -3.0, 2.0])}, {"head": jnp.zeros(3)}, 2)
      {'head': Array([False,  True,  True], dtype=bool)}
    """
    after, before = named_leaves(theta1), named_leaves(theta0)
    names = [name for name in before if include(name)]
    old = {} if taken is None else named_leaves(taken)
    count = sum(int(old[n].sum()) for n in names) if old else 0
    free = parameter_count([before[n] for n in names]) - count
    if not 0 <= k <= free:
        raise ValueError(f"k = {k}, but {free} entries may be chosen")

    def distance(name: str) -> Float[Array, "..."]:
        moved = jnp.abs(difference(after[name], before[name]))
        return jnp.where(old[name], jnp.inf, moved) if old else moved

    scores = {name: distance(name) for name in names}
    chosen = exactly(scores, selection(scores, k + count)) if names else {}
    marked = {**old, **chosen}
    return map_named(
        lambda name, x: marked[name] if name in marked else jnp.zeros(x.shape, bool),
        theta0,
    )


def sparse_delta(theta: Tree, theta0: Tree, mask: Tree) -> Tree:
    """`(theta - theta0) * mask` in float32: 0 outside of the mask."""
    return jax.tree.map(
        lambda after, before, m: jnp.where(m, difference(after, before), 0.0),
        theta,
        theta0,
        mask,
    )


def compose(theta0: Tree, deltas: Sequence[Tree]) -> Tree:
    """The base with deltas added; any order of them gives the same bits.

    Entries are summed from the smallest to the largest. An entry to which nothing is
    added keeps its bits.

    Example:
      >>> compose(jnp.zeros(2), [jnp.array([1.0, 0.0]), jnp.array([2.0, 0.5])])
      Array([3. , 0.5], dtype=float32)
    """
    if not deltas:
        return theta0

    def leaf(before: Array, *moves: Array) -> Array:
        ordered = jnp.sort(jnp.stack([m.astype(jnp.float32) for m in moves]), axis=0)
        return shifted(before, reduce(jnp.add, ordered))

    return jax.tree.map(leaf, theta0, *deltas)
