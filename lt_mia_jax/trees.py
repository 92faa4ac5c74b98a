"""Paths, selection and sizes of parameter trees; dataclasses that are trees."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError, capped

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def pytree(cls: Class) -> Class:
    """A frozen dataclass that is a pytree, equal to nothing but itself.

    Fields are children, but for those with `metadata={"static": True}`: they are part
    of the structure, and must be hashable.
    """
    made = dataclass(frozen=True, eq=False)(cls)
    static = [f.name for f in fields(made) if f.metadata.get("static")]
    names = [f.name for f in fields(made) if f.name not in static]

    def join(settings: Sequence[Any], children: Sequence[Any]) -> Any:
        values = [*children, *settings]
        return node_of(made, dict(zip([*names, *static], values, strict=True)))

    def split(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (
            tuple(getattr(node, name) for name in names),
            tuple(getattr(node, name) for name in static),
        )

    jax.tree_util.register_pytree_node(made, split, join)
    return made


def node_of(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass made past its constructor, from the values of all its fields.

    Children may be anything while jax transforms a tree, and stacked ones have a shape
    of their own.
    """
    node = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(node, name, value)
    return node


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by "/"-joined path, in sorted path order."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key in sorted(node):
                visit(f"{prefix}/{key}" if prefix else str(key), node[key])
        else:
            flat[prefix] = node

    visit("", tree)
    return flat


def path_of(path: Sequence[Any], separator: str = "/") -> str:
    """A JAX key path as `flatten` names it, such as "periods/slot_0/mixer/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=separator)


def named_leaves(tree: Any, separator: str = "/") -> dict[str, Any]:
    """Leaves of any pytree by path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path, separator): leaf for path, leaf in leaves}


def map_named(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` of a function that is given the path of a leaf first.

    Example:
      >>> from lt_mia_jax.trees import map_named
      >>> map_named(lambda path, x, y: f"{path}: {x + y}", {"a": [1, 2]}, {"a": [3, 4]})
      {'a': ['a/0: 4', 'a/1: 6']}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_of(path), *leaves), tree, *others
    )


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flatten` is `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that match any glob (`*` also crosses "/"), in their given order.

    Raises:
      InputError: a glob that matches nothing; all such globs are counted.
    """
    names = list(names)
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if idle:
        raise InputError(
            f"patterns {capped(idle)} match no parameter; parameters are "
            f"{capped(names)}"
        )
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]


def parameter_count(tree: Any) -> int:
    """Total number of array elements of all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def layer_numbers(params: Any) -> dict[str, np.ndarray]:
    """The numbers of the layers that each leaf holds, by path, from 0.

    Layers are laid out as `LanguageModel` does: those of `periods/slot_s/...` are
    stacked on the leading axis, layer `period * slots + s` at index `period`; those of
    `tail_t/...` follow, each with leaves of its own. Leaves outside layers, such as the
    embedding, have no entry.

    Example:
      >>> import numpy as np
      >>> from lt_mia_jax.trees import layer_numbers
      >>> slot, tail = {"kernel": np.zeros((2, 4, 4))}, {"kernel": np.zeros((4, 4))}
      >>> params = {"periods": {"slot_0": slot, "slot_1": slot}, "tail_0": tail}
      >>> found = layer_numbers(params)
      >>> list(map(int, found["periods/slot_1/kernel"])), int(found["tail_0/kernel"][0])
      ([1, 3], 4)
    """
    shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
    stacked = {
        name: int(name.split("/")[1].removeprefix("slot_"))
        for name in shapes
        if name.startswith("periods/slot_")
    }
    slots = len(set(stacked.values()))
    periods = max((shapes[name][0] for name in stacked), default=0)
    found = {name: np.arange(periods) * slots + slot for name, slot in stacked.items()}
    for name in shapes:
        if name.startswith("tail_"):
            number = name.partition("/")[0].removeprefix("tail_")
            found[name] = np.array([periods * slots + int(number)])
    return found


def layer_count(params: Any) -> int:
    """How many layers a model has, as `layer_numbers` counts them."""
    return max((int(n.max()) for n in layer_numbers(params).values()), default=-1) + 1


def slot_count(params: Any) -> int:
    """Layers in the repeating unit of a model: 1 unless it mixes kinds of layers.

    A model shorter than its unit, all tail, gives one more than its layers.
    """
    return len(params.get("periods", {})) or layer_count(params) + 1


def per_layer(
    params: Any,
    weights: Float[Array, "L"] | Float[np.ndarray, "L"] | Sequence[float],
    outside: Callable[[str], float],
) -> Any:
    """One float32 weight a layer, as a tree that broadcasts against the parameters.

    `weights` may be traced; as many as layers, or it is a ValueError. `outside` is the
    weight of a leaf that belongs to no layer, by its path. Leaves have as many axes as
    the parameters, all of size 1 but that of stacked layers.
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


def split_layers(params: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters outside layers, and those of each layer, in order."""
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
    rest: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], slots: int
) -> dict[str, Any]:
    """The parameters whose `split_layers` are these, with `slots` layers in a unit.

    Layers of a slot have equal names and shapes. Those after the last complete unit
    keep leaves of their own.

    Example:
      >>> import numpy as np
      >>> from lt_mia_jax.trees import join_layers
      >>> layers = [{"scale": np.full(2, float(n))} for n in range(3)]
      >>> found = join_layers({}, layers, slots=2)
      >>> found["periods"]["slot_1"]["scale"].shape, float(found["tail_0"]["scale"][0])
      ((1, 2), 2.0)
    """
    if slots < 1:
        raise ValueError(f"join_layers: slots = {slots}, expected at least 1")
    whole = len(layers) // slots * slots
    joined = dict(rest)
    if whole:
        joined["periods"] = {
            f"slot_{slot}": jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *layers[slot:whole:slots]
            )
            for slot in range(slots)
        }
    return joined | {f"tail_{n}": dict(x) for n, x in enumerate(layers[whole:])}


def check_alike(function: str, first: Any, *others: Any) -> None:
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
