"""Checks that refuse input for which no metric is defined."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError

PerItem = Float[np.ndarray, " _"]
"""One number an item. Lengths are compared by the functions, not by the annotation,
so that a difference is told in one clear line."""

Values = Num[np.ndarray | Array, " _"]
"""One number an item, as an argument."""


def per_item(
    name: str,
    values: Num[np.ndarray | Array, "..."],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    ndim: int = 1,
) -> Float[np.ndarray, "..."]:
    """`values` in float64, one row an item.

    Raises:
      InputError: no item, another number of axes, NaN, or a value outside [low, high].
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != ndim or found.size == 0:
        raise InputError(
            f"{name} has shape {list(found.shape)}; expected {ndim} axes and at least "
            "one item"
        )
    rows = np.unique(np.nonzero(np.isnan(found))[0])
    if rows.size:
        raise InputError(
            f"{name} is NaN for {rows.size} of {len(found)} items, first "
            f"{rows[:5].tolist()}; leave out items without a value (empty answers), "
            "and look for a diverged model if there are none"
        )
    if found.min() < low or found.max() > high:
        raise InputError(
            f"{name} goes from {found.min():g} to {found.max():g}; expected values in "
            f"[{low:g}, {high:g}]"
        )
    return found


def number(
    name: str, value: float, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """`value` as a float.

    Raises:
      InputError: NaN, infinite, or outside [low, high].
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{name} is {value}; expected a number in [{low:g}, {high:g}]")
    return float(value)


def same_items(**sets: Sequence | np.ndarray | Array) -> int:
    """The number of items, which all `sets` share.

    Raises:
      InputError: they differ.
    """
    lengths = {name: len(items) for name, items in sets.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"numbers of items differ: {listed}; expected one value of each for the "
            "same items in the same order"
        )
    return next(iter(lengths.values()))


def texts(name: str, values: Sequence[str]) -> list[str]:
    """`values` as a list.

    Raises:
      InputError: a single text in place of several, or none.
    """
    if isinstance(values, str) or len(values) == 0:
        found = "one text" if isinstance(values, str) else "no text"
        raise InputError(f"{name}: found {found}; expected a list, one text an item")
    return list(values)
