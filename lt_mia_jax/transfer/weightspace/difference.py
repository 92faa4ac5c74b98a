"""Carry what fine-tuning changed from one version of a base model to another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import capped
from lt_mia_jax.training.threshold import difference
from lt_mia_jax.transfer.weightspace.roles import Tree, shifted, vocabulary_axis
from lt_mia_jax.trees import check_alike, map_named, named_leaves


def transfer_diff(
    target: Tree,
    base: Tree,
    finetuned: Tree,
    *,
    scale: float | Float[Array, ""] = 1.0,
    include: Callable[[str], bool] = lambda path: True,
) -> Tree:
    """`target + scale * (finetuned - base)`: the fine-tuning of another base.

    `target` is another version of `base`. Its vocabulary may have another size: rows
    (columns of a head) that both have are moved, the rest of the target stays. Other
    differences between trees are a ValueError. `include` accepts the paths of
    parameters that move. With `scale` 0 the result is the target, bit
    for bit; where `target` equals `base` and `scale` is 1, it is `finetuned`.

    Example:
      >>> base, tuned, newer = ({"w": jnp.full(2, x)} for x in (1.0, 1.5, 4.0))
      >>> transfer_diff(newer, base, tuned)["w"]
      Array([4.5, 4.5], dtype=float32)

    Source: "Efficient Model Development through Fine-tuning Transfer". Kept: the
    difference vector, and its reuse as a start for further fine-tuning (the result is
    an ordinary model). Not kept: the models and benchmarks.
    """
    check_alike("transfer_diff", base, finetuned)
    start, tuned = named_leaves(base), named_leaves(finetuned)
    if wrong := sorted(named_leaves(target).keys() ^ start.keys()):
        raise ValueError(
            f"transfer_diff: target and base do not both have {capped(wrong)}"
        )

    def moved(name: str, leaf: Any) -> Any:
        if not include(name):
            return leaf
        return _moved(name, leaf, start[name], tuned[name], jnp.float32(scale))

    return map_named(moved, target)


def _moved(name: str, leaf: Any, start: Any, tuned: Any, scale: Array) -> Array:
    if leaf.shape == start.shape:
        return _shift(leaf, start, tuned, scale)
    axis = vocabulary_axis(name)
    index: list[slice] = [slice(None)] * leaf.ndim
    if axis is not None:
        index[axis] = slice(min(leaf.shape[axis], start.shape[axis]))
    common = tuple(index)
    if axis is None or leaf[common].shape != start[common].shape:
        raise ValueError(
            f"transfer_diff: {name} is {list(leaf.shape)} in the target and "
            f"{list(start.shape)} in the base; only vocabularies may differ"
        )
    moved = _shift(leaf[common], start[common], tuned[common], scale)
    return jnp.asarray(leaf).at[common].set(moved)


@jax.jit
def _shift(leaf: Array, start: Array, tuned: Array, scale: Array) -> Array:
    same = (leaf == start) & (scale == 1)
    moved = shifted(leaf, scale * difference(tuned, start))
    return jnp.where(same, tuned.astype(leaf.dtype), moved)


class Barrier(NamedTuple):
    """The losses at points of the straight line between two models."""

    losses: Float[np.ndarray, "S"]
    height: float
    """The most by which a loss exceeds the straight line between the ends' losses; at
    or below 0 the models lie in one basin along the line."""


def loss_barrier(
    one: Tree,
    other: Tree,
    loss: Callable[[Tree], Array],
    points: Sequence[float] = tuple(i / 10 for i in range(11)),
) -> Barrier:
    """How much worse than its ends the line between two models is.

    `one` is at 0, `other` at 1; trees that differ raise a ValueError. `loss` maps
    parameters to a scalar and is compiled once. Of `points`, where it is evaluated, the
    first and the last are the ends.

    Example:
      >>> wells = lambda p: (p["w"] ** 2 - 1) ** 2
      >>> ends = ({"w": jnp.float32(-1.0)}, {"w": jnp.float32(1.0)})
      >>> loss_barrier(*ends, wells, points=(0.0, 0.5, 1.0)).height
      1.0

    Source: "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv
    1912.05671 (the error barrier).
    """
    check_alike("loss_barrier", one, other)

    @jax.jit
    def at(one: Tree, other: Tree, t: Array) -> Array:
        def mixed(a: Array, b: Array) -> Array:
            return ((1 - t) * a + t * b).astype(a.dtype)

        return loss(jax.tree.map(mixed, one, other))

    ts = np.asarray(points, np.float64)
    losses = np.array([float(at(one, other, jnp.float32(t))) for t in ts])
    line = losses[0] + (losses[-1] - losses[0]) * (ts - ts[0]) / (ts[-1] - ts[0])
    return Barrier(losses, float((losses - line).max()))
