"""What each parameter of a model is for, and to which layer it belongs.

Operations on weights treat parameters by role and by layer. Both are read from the
path that `LanguageModel` gives to a leaf, never from the name of a model family, so
they hold for attention, Mamba, RWKV, Griffin and stacks that mix them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import capped
from lt_mia_jax.trees import (
    flatten,
    layer_count,
    layer_numbers,
    map_named,
    named_leaves,
    unflatten,
)

Tree = Any
"""Parameters of a model: nested dicts of arrays."""

Role = Literal[
    "embedding", "head", "mixer", "feed_forward", "norm", "recurrence", "other"
]

PROTECTED: tuple[Role, ...] = ("norm", "recurrence")
"""Roles that are not trimmed or pruned by default: few, and a small change of one may
matter much."""

_MATRICES = ("kernel", "bias", "taps", "blocks")
"""Names of weights and biases in a layer; what a layer holds beside them are constants
of its recurrence: decays, bonus, skip, factors that mix a token with the one before."""


def role(path: str) -> Role:
    """What a parameter is for, from its path.

    "embedding" (tokens, positions and their projection), "head", "mixer" (attention or
    a recurrence's matrices), "feed_forward", "norm" (scales and biases, also those of
    queries and keys), "recurrence" (constants of a recurrence: decays, step biases,
    skips, mixing factors) or "other". A tied head has no parameter: its table is an
    "embedding".

    Example:
      >>> role("periods/slot_0/mixer/query/kernel"), role("tail_0/mixer_norm/scale")
      ('mixer', 'norm')
      >>> role("periods/slot_0/mixer/log_decay"), role("embedding/tokens")
      ('recurrence', 'embedding')
    """
    parts = path.split("/")
    if any(part.endswith("norm") for part in parts[:-1]):
        return "norm"
    if parts[0] in ("embedding", "embedding_projection"):
        return "embedding"
    if parts[0] in ("head", "head_projection"):
        return "head"
    for half in ("mixer", "feed_forward"):
        if half in parts:
            constant = parts[-1] not in _MATRICES or parts[-2:] == ["step", "bias"]
            return "recurrence" if constant else half
    return "other"


def vocabulary_axis(path: str) -> int | None:
    """The axis of a parameter along which tokens of the vocabulary lie, if any."""
    return {"embedding/tokens": 0, "head/kernel": -1, "head/bias": -1}.get(path)


def check_alike(function: str, first: Tree, *others: Tree) -> None:
    """Refuse trees with other names or shapes than the first by a ValueError."""
    expected, *rest = (
        {name: leaf.shape for name, leaf in named_leaves(tree).items()}
        for tree in (first, *others)
    )
    for number, found in enumerate(rest, start=2):
        names = sorted({*expected, *found})
        wrong = [name for name in names if expected.get(name) != found.get(name)]
        if wrong:
            raise ValueError(
                f"{function}: tree {number} differs from the first in {capped(wrong)}"
            )


def shifted(start: Array, move: Array) -> Array:
    """`start + move` in the dtype of `start`, whose bits stay where `move` is 0."""
    moved = (start.astype(jnp.float32) + move).astype(start.dtype)
    return jnp.where(move == 0, start, moved)


def is_matrix(path: str) -> bool:
    """Whether a parameter is a matrix of a mixer or feed-forward, also a block of one.

    Example:
      >>> is_matrix("tail_0/mixer/output/kernel"), is_matrix("tail_0/mixer/output/bias")
      (True, False)
    """
    named = path.rpartition("/")[2] in ("kernel", "blocks")
    return named and role(path) in ("mixer", "feed_forward")


def slots(params: Tree) -> int:
    """Layers in the repeating unit of a model: 1 unless it mixes kinds of layers.

    A model shorter than its unit, all tail, gives one more than its layers.
    """
    return len(params.get("periods", {})) or layer_count(params) + 1


def per_layer(
    params: Tree,
    weights: Float[Array, "L"] | Float[np.ndarray, "L"] | Sequence[float],
    outside: Callable[[str], float],
) -> Tree:
    """One float32 weight a layer, as a tree that broadcasts against the parameters.

    `weights` may be traced; as many as layers, or it is a ValueError. `outside` is the
    weight of a leaf that belongs to no layer, by its path. Leaves have as many axes as
    the parameters, all of size 1 but that of stacked layers.

    Example:
      >>> params = {"periods": {"slot_0": {"kernel": jnp.ones((3, 4, 4))}}}
      >>> found = per_layer(params, [0.0, 0.5, 1.0], len)["periods"]["slot_0"]["kernel"]
      >>> found.shape, found[:, 0, 0].tolist()
      ((3, 1, 1), [0.0, 0.5, 1.0])
    """
    weights = jnp.asarray(weights, jnp.float32)
    numbers, count = layer_numbers(params), layer_count(params)
    if weights.shape != (count,):
        raise ValueError(f"weights are {list(weights.shape)}; the model has {count}")

    def weight(name: str, leaf: Any) -> Array:
        axes, stacked = len(leaf.shape), name.startswith("periods/")
        if name not in numbers:
            return jnp.full((1,) * axes, outside(name), jnp.float32)
        return weights[numbers[name]].reshape((-1,) * stacked + (1,) * (axes - stacked))

    return map_named(weight, params)


def split_layers(params: Tree) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters outside layers, and those of each layer, in order.

    Example:
      >>> params = {"head": jnp.ones(2), "periods": {"slot_0": {"k": jnp.arange(3)}}}
      >>> rest, layers = split_layers(params)
      >>> rest, [int(layer["k"]) for layer in layers]
      ({'head': Array([1., 1.], dtype=float32)}, [0, 1, 2])
    """
    numbers, flat = layer_numbers(params), flatten(params)
    layers: list[dict[str, Any]] = [{} for _ in range(layer_count(params))]
    for name, held in numbers.items():
        stacked = name.startswith("periods/")
        inner = name.split("/", 2 if stacked else 1)[-1]
        for index, number in enumerate(held):
            layers[number][inner] = flat[name][index] if stacked else flat[name]
    rest = {name: leaf for name, leaf in flat.items() if name not in numbers}
    return unflatten(rest), [unflatten(layer) for layer in layers]
