"""What each parameter of a model is for, and to which layer it belongs.

Operations on weights treat parameters by role and by layer. Both are read from the
path that `LanguageModel` gives to a leaf, never from the name of a model family, so
they hold for attention, Mamba, RWKV, Griffin and stacks that mix them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import capped
from lt_mia_jax.trees import (
    flatten,
    layer_count,
    layer_numbers,
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

    Returns:
      "embedding" (tokens, positions and their projection), "head", "mixer" (attention
      or a recurrence's matrices), "feed_forward", "norm" (scales and biases, also those
      of queries and keys), "recurrence" (constants of a recurrence: decays, step
      biases, skips, mixing factors) or "other". A tied head has no parameter: its
      table is an "embedding".

    Example:
      >>> from lt_mia_jax.transfer.weightspace.roles import role
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
    """Refuse trees of other names or shapes than the first.

    Raises:
      ValueError: trees that differ; the message names some of the leaves.
    """
    expected = {name: leaf.shape for name, leaf in named_leaves(first).items()}
    for number, tree in enumerate(others, start=2):
        found = {name: leaf.shape for name, leaf in named_leaves(tree).items()}
        wrong = sorted(
            name
            for name in {*expected, *found}
            if expected.get(name) != found.get(name)
        )
        if wrong:
            raise ValueError(
                f"{function}: tree {number} differs from the first in {capped(wrong)}"
            )


def is_matrix(path: str) -> bool:
    """Whether a parameter is a matrix of a mixer or feed-forward, also a block of one.

    Example:
      >>> from lt_mia_jax.transfer.weightspace.roles import is_matrix
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
    outside: float | Callable[[str], float] = 1.0,
) -> Tree:
    """One float32 weight a layer, as a tree that broadcasts against the parameters.

    Args:
      params: parameters or their shapes.
      weights: one number a layer, in order; may be traced.
      outside: the weight of leaves that belong to no layer, or a function of the path.

    Returns:
      A tree like `params` of arrays with as many axes; all are of size 1 but that of
      stacked layers, so `jax.tree.map(jnp.multiply, params, result)` scales layers.

    Raises:
      ValueError: there are not as many weights as layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from lt_mia_jax.transfer.weightspace.roles import per_layer
      >>> params = {"periods": {"slot_0": {"kernel": jnp.ones((3, 4, 4))}}}
      >>> found = per_layer(params, [0.0, 0.5, 1.0])["periods"]["slot_0"]["kernel"]
      >>> found.shape, found[:, 0, 0].tolist()
      ((3, 1, 1), [0.0, 0.5, 1.0])
    """
    weights = jnp.asarray(weights, jnp.float32)
    numbers, count = layer_numbers(params), layer_count(params)
    if weights.shape != (count,):
        raise ValueError(f"weights are {list(weights.shape)}; the model has {count}")

    def weight(name: str, leaf: Any) -> Array:
        if name not in numbers:
            value = outside(name) if callable(outside) else outside
            return jnp.full((1,) * len(leaf.shape), value, jnp.float32)
        axes = len(leaf.shape) - name.startswith("periods/")
        return weights[numbers[name]].reshape(
            (-1,) * name.startswith("periods/") + (1,) * axes
        )

    found = [weight(name, leaf) for name, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def split_layers(params: Tree) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters outside layers, and those of each layer, in order.

    Example:
      >>> import jax.numpy as jnp
      >>> from lt_mia_jax.transfer.weightspace.roles import join_layers, split_layers
      >>> params = {"head": jnp.ones(2), "periods": {"slot_0": {"k": jnp.arange(3)}}}
      >>> rest, layers = split_layers(params)
      >>> rest, [int(layer["k"]) for layer in layers]
      ({'head': Array([1., 1.], dtype=float32)}, [0, 1, 2])
      >>> join_layers(rest, layers[:2])["periods"]["slot_0"]["k"]
      Array([0, 1], dtype=int32)
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


def join_layers(
    rest: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], slots: int = 1
) -> dict[str, Any]:
    """The parameters of a model from its layers: the reverse of `split_layers`.

    Args:
      rest: parameters outside layers.
      layers: parameters of each layer, in order.
      slots: layers in the repeating unit. Whole units are stacked; layers left over
        become `tail_0`, `tail_1`, ...

    Raises:
      ValueError: layers in the same slot have different parameters.
    """
    whole = len(layers) // slots * slots
    tree: dict[str, Any] = dict(rest)
    stack = np.stack if isinstance(_first(layers), np.ndarray) else jnp.stack
    for slot in range(slots if whole else 0):
        tree.setdefault("periods", {})[f"slot_{slot}"] = jax.tree.map(
            lambda *leaves: stack(leaves), *layers[slot:whole:slots]
        )
    for index, layer in enumerate(layers[whole:]):
        tree[f"tail_{index}"] = dict(layer)
    return tree


def _first(layers: Sequence[Mapping[str, Any]]) -> Any:
    return next(iter(jax.tree.leaves(list(layers))), None)
