"""Merge fine-tunes of one base: TIES, and the baselines that it is compared with.

Merging goes leaf by leaf: beside the trees there are never more than a few copies of
one leaf. Arithmetic is float32; each leaf keeps the dtype of the base. Trees that
differ raise a ValueError.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.training.threshold import (
    difference,
    exactly_leaf,
    majority_sign,
    selections,
    sign_counts,
)
from lt_mia_jax.training.transforms.contract import require_choice
from lt_mia_jax.transfer.weightspace.roles import PROTECTED, Role, Tree, role, shifted
from lt_mia_jax.trees import check_alike, map_named, named_leaves, parameter_count

Elect = Literal["mass", "count"]
Named = dict[str, Any]
Leaves = tuple[Array, ...]
Trim = tuple[Leaves, Leaves] | None
"""Limits and rooms (`training.threshold`) of the tasks at a leaf; None keeps all."""


def ties_merge(
    base: Tree,
    finetuned: Sequence[Tree],
    *,
    density: float = 0.2,
    lam: float | Float[Array, ""] = 1.0,
    elect: Elect = "mass",
    agg: Literal["mean", "sum", "max"] = "mean",
    scope: Literal["global", "leaf"] = "global",
    protect: Sequence[Role] = PROTECTED,
) -> Tree:
    """`base + lam * merged`, with what the fine-tunes changed merged sign by sign.

    Of each task vector, fine-tune minus base, the largest magnitudes are kept. Each
    parameter gets one sign; the kept entries of that sign are averaged.

    Args:
      base: what all models were fine-tuned from.
      finetuned: at least one.
      density: fraction of each task vector that is kept, in [0, 1]: of n entries
        exactly `round(density * n)`; of equal magnitudes the first in the tree are.
      lam: factor on the merged task vector; 0 gives the base, bit for bit.
      elect: "mass" takes the sign of the sum of kept entries, "count" that of the
        majority. A tie takes the more frequent sign of the whole vector, else plus.
      agg: mean, sum or largest magnitude of the entries that have the sign.
      scope: trims over the "global" vector, or each "leaf" by itself.
      protect: roles whose entries are all kept, and do not count as entries: a small
        change of a norm's scale or of a decay may matter much. Empty trims all.

    Returns:
      A tree like `base`. One fine-tune at density 1 and `lam` 1 is returned bit for
      bit, as is any parameter that only one task moves (at `lam` 1).

    Example:
      >>> base = {"head": {"kernel": jnp.zeros(4)}}
      >>> one = {"head": {"kernel": jnp.array([1.0, 3.0, 0.1, 0.0])}}
      >>> two = {"head": {"kernel": jnp.array([-2.0, 1.0, 0.1, 0.0])}}
      >>> ties_merge(base, [one, two], density=0.5)["head"]["kernel"]
      Array([-2.,  2.,  0.,  0.], dtype=float32)

    Source: "TIES-Merging", arXiv 2306.01708. Kept: trimming over the whole vector,
    election by mass, the mean of agreeing entries, the sign of ties. Not kept: the
    released code keeps one entry too many and trims norms and recurrences too
    (`protect=()`); learned (IA)^3 vectors have no place in these models.
    """
    start, *tasks = (named_leaves(tree) for tree in (base, *finetuned))
    merged = merger(start, tasks, density, lam, elect, agg, scope, protect)
    return map_named(lambda name, _: merged(name), base)


def merger(
    start: Named,
    tasks: Sequence[Named],
    density: float,
    lam: float | Float[Array, ""],
    elect: Elect = "mass",
    agg: Literal["mean", "sum", "max"] = "mean",
    scope: Literal["global", "leaf"] = "global",
    protect: Sequence[Role] = PROTECTED,
) -> Callable[[str], Array]:
    """`ties_merge` of leaves by path, as a function of a path.

    Leaves, in the order of the tree, may be arrays on disk: they are read when needed.
    """
    require_choice("ties_merge", "elect", elect, ("mass", "count"))
    require_choice("ties_merge", "agg", agg, ("mean", "sum", "max"))
    require_choice("ties_merge", "scope", scope, ("global", "leaf"))
    if not 0 <= density <= 1:
        raise ValueError(f"ties_merge: density = {density}, expected in [0, 1]")
    if not tasks:
        raise ValueError("ties_merge: there is nothing to merge")
    check_alike("ties_merge", start, *tasks)
    trimmed = [name for name in start if role(name) not in protect]
    groups = [trimmed] if scope == "global" else [[name] for name in trimmed]
    trims = _trims(start, tasks, density, groups)

    def at(name: str) -> tuple[Array, Leaves, Trim]:
        read = tuple(jnp.asarray(tree[name]) for tree in (start, *tasks))
        return read[0], read[1:], trims[name]

    @cache
    def majority() -> Array:
        return majority_sign([_done(_signs(*at(name), elect=elect)) for name in start])

    def merged(name: str) -> Array:
        leaf = partial(_merged, *at(name), jnp.float32(lam), elect=elect, agg=agg)
        found, ties = _done(leaf(tie=jnp.float32(1)))
        if isinstance(ties, Tracer) or ties:  # few models have any
            found, _ = _done(leaf(tie=majority()))
        return found

    return merged


_done = jax.block_until_ready
"""Of one leaf before the next begins: else their temporary arrays pile up."""


def _trims(
    start: Named, tasks: Sequence[Named], density: float, groups: list[list[str]]
) -> dict[str, Trim]:
    """What each task keeps of each leaf; each group of leaves is trimmed together."""
    trims: dict[str, Trim] = dict.fromkeys(start)
    if density == 1:
        return trims
    for group in groups:
        own = [start[name] for name in group]  # lists keep the order
        kept = round(density * parameter_count(own))
        chosen = selections([[task[n] for n in group] for task in tasks], kept, own)
        limits = tuple(each.limit for each in chosen)
        for index, name in enumerate(group):
            trims[name] = limits, tuple(each.room[index] for each in chosen)
    return trims


def _kept(start: Array, tasks: Leaves, trim: Trim = None) -> list[Array]:
    """The trimmed task vectors of one leaf."""
    moves = [difference(task, start) for task in tasks]
    if trim is None:
        return moves
    return [
        jnp.where(exactly_leaf(move, limit, room), move, 0.0)
        for move, limit, room in zip(moves, *trim, strict=True)
    ]


_sum = partial(reduce, jnp.add)


def _elected(kept: Sequence[Array], elect: str) -> Array:
    """The sign of each parameter; 0 for a tie."""
    return jnp.sign(_sum(kept if elect == "mass" else [jnp.sign(k) for k in kept]))


@partial(jax.jit, static_argnames="elect")
def _signs(start: Array, tasks: Leaves, trim: Trim, *, elect: str) -> Any:
    return sign_counts(_elected(_kept(start, tasks, trim), elect))


@partial(jax.jit, static_argnames=("elect", "agg"))
def _merged(
    start: Array,
    tasks: Leaves,
    trim: Trim,
    lam: Float[Array, ""],
    *,
    tie: Float[Array, ""],
    elect: str,
    agg: str,
) -> tuple[Array, Bool[Array, ""]]:
    """One leaf merged, and whether the sign for ties was needed."""
    kept = _kept(start, tasks, trim)
    sign = _elected(kept, elect)
    tied = jnp.any((sign == 0) & reduce(jnp.logical_or, [k != 0 for k in kept]))
    sign = jnp.where(sign == 0, tie, sign)
    agrees = [move * sign > 0 for move in kept]
    moves = [jnp.where(a, move, 0.0) for a, move in zip(agrees, kept, strict=True)]
    count = _sum([a.astype(jnp.float32) for a in agrees])
    if agg == "max":
        step = sign * reduce(jnp.maximum, [jnp.abs(move) for move in moves])
    else:
        step = _sum(moves) / (jnp.maximum(count, 1.0) if agg == "mean" else 1.0)
    only = start
    for agree, task in zip(agrees, tasks, strict=True):
        only = jnp.where(agree, task.astype(start.dtype), only)
    # What one task moves is taken as it is, not through a rounded difference.
    whole = jnp.where((count == 1) & (lam == 1), only, shifted(start, lam * step))
    return whole, tied


def sign_conflict(
    base: Tree, finetuned: Sequence[Tree], *, elect: Elect = "mass"
) -> Tree:
    """The fraction of fine-tunes that move a parameter against its elected sign.

    A tree like `base`, float32 in [0, 1); a tie counts as plus.

    Source: "TIES-Merging", arXiv 2306.01708.
    """
    check_alike("sign_conflict", base, *finetuned)
    return jax.tree.map(partial(_conflict, elect), base, *finetuned)


@partial(jax.jit, static_argnums=0)
def _conflict(elect: str, start: Array, *tasks: Array) -> Array:
    moves = _kept(start, tasks)
    sign = jnp.where(_elected(moves, elect) < 0, -1.0, 1.0)
    return jnp.mean(jnp.stack([move * sign < 0 for move in moves]), axis=0)


def task_arithmetic(
    base: Tree, finetuned: Sequence[Tree], *, lam: float | Float[Array, ""] = 1.0
) -> Tree:
    """`base + lam * sum of (fine-tune - base)`; `lam` 0 gives the base, bit for bit.

    Source: "Editing Models with Task Arithmetic", arXiv 2212.04089.
    """
    check_alike("task_arithmetic", base, *finetuned)
    return jax.tree.map(partial(_added, jnp.float32(lam)), base, *finetuned)


@jax.jit
def _added(lam: Float[Array, ""], start: Array, *tasks: Array) -> Array:
    return shifted(start, lam * _sum(_kept(start, tasks)))


def mean(models: Sequence[Tree]) -> Tree:
    """The average of models, in the dtypes of the first.

    Source: "Model soups", arXiv 2203.05482 (the uniform soup).
    """
    check_alike("mean", *models)
    return jax.tree.map(_average, *models)


@jax.jit
def _average(*leaves: Array) -> Array:
    total = _sum([leaf.astype(jnp.float32) for leaf in leaves])
    return (total / len(leaves)).astype(leaves[0].dtype)
