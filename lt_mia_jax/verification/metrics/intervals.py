"""Bootstrap intervals of any aggregate of per-item values."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import PerItem, same_items

Group = np.ndarray | tuple[np.ndarray, ...]
"""Values of the same items: one array, or several of equal length (a NamedTuple stays
one)."""


def bootstrap_interval(
    aggregate: Callable[..., float],
    *groups: Group,
    level: float = 0.95,
    seed: int = 0,
    n_boot: int = 1000,
) -> Estimate:
    """Percentile bootstrap interval over items.

    Items of a group are drawn with replacement, all arrays of the group together (so a
    difference of two models on the same items is a paired one); groups are drawn
    independently. The same seed draws the same items for every aggregate.

    Says nothing about training seeds. Not for p-values: repeated items are ties that no
    continuous sample has.

    Args:
      aggregate: called as `aggregate(*groups)`; np.mean, an AUC, model utility.
      *groups: per-item values; axis 0 is the item.
      level: coverage.
      seed: of the draws.
      n_boot: number of draws.

    Raises:
      InputError: fewer than two items in a group, or an aggregate that is NaN on the
        items or on a draw.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if n_boot < 1 or not 0 < level < 1 or not groups:
        raise InputError(
            f"n_boot={n_boot}, level={level}, {len(groups)} groups; expected n_boot >= "
            "1, 0 < level < 1 and at least one group"
        )
    sizes = [_size(i, group) for i, group in enumerate(groups)]
    value = float(aggregate(*groups))
    rng = np.random.default_rng(seed)
    takes = list(zip(map(_taker, groups), sizes, strict=True))
    drawn = np.empty(n_boot)
    for i in range(n_boot):
        drawn[i] = aggregate(*(take(rng.integers(n, size=n)) for take, n in takes))
    broken = int(np.isnan(drawn).sum())
    if broken or np.isnan(value):
        raise InputError(
            f"the aggregate is {value} on the items and NaN on {broken} of {n_boot} "
            "draws; leave out items without a value, or give more of them"
        )
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def estimate(aggregate: Callable[..., float], *groups: Group, seed: int) -> Estimate:
    """`bootstrap_interval`, but without an interval for a group of a single item."""
    counts = [len(g[0]) if isinstance(g, tuple) else len(g) for g in groups]
    if min(counts) < 2:
        return Estimate(float(aggregate(*groups)))
    return bootstrap_interval(aggregate, *groups, seed=seed)


def estimate_mean(values: PerItem, seed: int) -> Estimate:
    """Mean over the items that have a value, at least one."""
    return estimate(lambda x: float(np.mean(x)), values[~np.isnan(values)], seed=seed)


def _size(number: int, group: Group) -> int:
    arrays = group if isinstance(group, tuple) else (group,)
    n = same_items(**{f"array {i}": a for i, a in enumerate(arrays)})
    if n < 2:
        raise InputError(
            f"group {number} has {n} items; an interval needs at least two"
        )
    return n


def _taker(group: Group) -> Callable[[np.ndarray], Any]:
    """The function that takes rows of a group, as a group of the same kind."""
    if not isinstance(group, tuple):
        return lambda rows: group[rows]
    make = getattr(group, "_make", tuple)
    return lambda rows: make(array[rows] for array in group)
