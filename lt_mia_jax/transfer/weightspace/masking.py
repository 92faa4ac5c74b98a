"""Masked teachers that are restored in stages (Masters).

A small student imitates a teacher without its smallest weights more easily.

Source: "Masking Teacher and Reinforcing Student for Distilling Vision-Language Models"
(Masters). Kept: the mask by layer and its schedule. Not kept: the reinforcement
learning that follows.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.training.threshold import exactly, selection
from lt_mia_jax.training.transforms.contract import require_choice
from lt_mia_jax.transfer.weightspace.roles import is_matrix
from lt_mia_jax.trees import flatten, layer_numbers, unflatten


def mask_teacher(
    params: Params,
    r: float,
    scope: Literal["layer", "model"] = "layer",
    include: Callable[[str], bool] = is_matrix,
) -> Params:
    """Parameters without the fraction `r` of smallest magnitude, in [0, 1].

    Exactly `round(r * n)` of the n entries of each "layer" are zero, of equal ones the
    last; or of the whole "model", which may leave little of some layers. With `r` 0 it
    is `params` itself. `include` accepts the paths that may be masked; with "layer",
    a path outside layers is a ValueError.

    Example:
      >>> kernel = jnp.array([[1.0, -3.0, 2.0, 0.5]])
      >>> found = mask_teacher({"tail_0": {"mixer": {"kernel": kernel}}}, 0.5)
      >>> found["tail_0"]["mixer"]["kernel"].tolist()
      [[0.0, -3.0, 2.0, 0.0]]
    """
    require_choice("mask_teacher", "scope", scope, ("layer", "model"))
    if not 0 <= r <= 1:
        raise ValueError(f"r = {r}, expected in [0, 1]")
    if r == 0:
        return params
    flat = flatten(params)
    names, inside = [n for n in flat if include(n)], layer_numbers(params)
    if scope == "model":
        return unflatten(flat | _masked({n: flat[n] for n in names}, r))
    outside = [n for n in names if n not in inside]
    if outside:
        raise ValueError(f"{outside} belong to no layer; use the scope 'model'")
    blocks: dict[str, dict[str, Array]] = {}
    for name in names:
        # "periods/slot_0" or "tail_0".
        unit = "/".join(name.split("/")[: 1 + name.startswith("periods/")])
        blocks.setdefault(unit, {})[name] = flat[name]
    for unit, block in blocks.items():
        if unit.startswith("periods/"):
            flat |= jax.vmap(lambda layer: _masked(layer, r))(block)
        else:
            flat |= _masked(block, r)
    return unflatten(flat)


def _masked(block: dict[str, Any], r: float) -> dict[str, Any]:
    """One layer without its smallest entries."""
    size = sum(leaf.size for leaf in block.values())
    kept = exactly(block, selection(block, size - round(r * size)))
    return {
        name: jnp.where(kept[name], leaf, jnp.zeros((), leaf.dtype))
        for name, leaf in block.items()
    }


def masked_fraction(
    iteration: int, iterations: int, rmax: float = 0.2, step: float = 0.05
) -> float:
    """The masked fraction of an iteration, `rmax - step * stage`.

    The stage is `floor(iteration * M / iterations)` with `M = rmax / step + 1`, so that
    the last stage has the whole teacher.

    Example:
      >>> [masked_fraction(i, 10) for i in (0, 1, 2, 8, 9)]
      [0.2, 0.2, 0.15, 0.0, 0.0]
    """
    if not 0 <= iteration < iterations:
        raise ValueError(f"iteration = {iteration}, expected in [0, {iterations})")
    count = round(rmax / step) if step > 0 else -1
    if not 0 <= rmax <= 1 or abs(count * step - rmax) > 1e-9:
        raise ValueError(f"rmax = {rmax}, step = {step}; expected rmax = n * step <= 1")
    stage = iteration * (count + 1) // iterations
    return round(rmax - step * stage, 9)
