"""The table of transformations, and what they share: arguments, state, numbers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lt_mia_jax.arrays import Array
from lt_mia_jax.trees import named_leaves

Tree = Any
"""A pytree of arrays, such as parameters or gradients."""
Step = tuple[Tree, Any]
"""What `update` returns: the updates, and the next state of the transformation."""

HOLD = -0.0
"""The update that preserves every float: x + 0.0 would turn -0.0 into 0.0."""

Settings = ParamSpec("Settings")


class Transformation(NamedTuple):
    """A row of `TRANSFORMS`."""

    make: Callable[..., optax.GradientTransformationExtraArgs]
    """The public function: from settings to the transformation."""
    needs: tuple[str, ...]
    """Arguments that its `update` always needs beside gradients and state."""

    @property
    def meaning(self) -> str:
        """What it does, in one line: the first of its docstring."""
        return (self.make.__doc__ or "").partition("\n")[0]

    @property
    def source(self) -> str:
        """The publication it is from, as its docstring has it; or empty."""
        _, _, found = (self.make.__doc__ or "").partition("Source: ")
        return " ".join(found.split())


TRANSFORMS: dict[str, Transformation] = {}
"""All transformations by name; `transformation` makes the rows."""


def transformation(
    *needs: str,
) -> Callable[
    [Callable[Settings, optax.GradientTransformationExtraArgs]],
    Callable[Settings, optax.GradientTransformationExtraArgs],
]:
    """Decorate a function that makes a transformation: a row of `TRANSFORMS`.

    Its `update` raises a `ValueError` without one of `needs` (`params` or extra
    arguments).
    """

    def register(
        make: Callable[Settings, optax.GradientTransformationExtraArgs],
    ) -> Callable[Settings, optax.GradientTransformationExtraArgs]:
        @functools.wraps(make)
        def made(
            *args: Settings.args, **settings: Settings.kwargs
        ) -> optax.GradientTransformationExtraArgs:
            inner = make(*args, **settings)

            def update(
                updates: Tree, state: Any, params: Tree = None, **extra: Any
            ) -> Step:
                given = {"params": params, **extra}
                require(make.__name__, **{name: given.get(name) for name in needs})
                return inner.update(updates, state, params, **extra)

            return optax.GradientTransformationExtraArgs(inner.init, update)

        TRANSFORMS[make.__name__] = Transformation(made, needs)
        return made

    return register


def require(who: str, **arguments: Any) -> None:
    """Raise a `ValueError` that names every argument that is None."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        call = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"{who} needs {', '.join(missing)}; call tx.update(gradients, state, "
            f"{call}) and keep it out of optax.MultiSteps, which drops extra arguments"
        )


def require_same_tree(
    who: str, name: str, tree: Tree, updates: Tree, *, stacked: int | None = None
) -> None:
    """Raise a `ValueError` unless the extra argument `name` mirrors the gradients.

    With `stacked` its leaves have a further leading axis of that size.
    """
    if jax.tree.structure(tree) != jax.tree.structure(updates):
        raise ValueError(
            f"{who}: {name} is another tree than the gradients. Freeze parameters with "
            "`freeze`, or with optax.masked and optax.partition under "
            "mask_compatible_extra_args=True, so that both are cut alike"
        )
    front = () if stacked is None else (stacked,)
    leaves = zip(named_leaves(updates).items(), jax.tree.leaves(tree), strict=True)
    wrong = [
        f"{name}: {found.shape}, expected {(*front, *leaf.shape)}"
        for (name, leaf), found in leaves
        if found.shape != (*front, *leaf.shape)
    ]
    if wrong:
        raise ValueError(f"{who}: {name} has other shapes; {'; '.join(wrong)}")


def mirrored(
    who: str, extra: dict[str, Any], updates: Tree, name: str = "retain_grads"
) -> Tree:
    """The extra argument `name`, which mirrors the gradients; else a `ValueError`."""
    require(who, **{name: extra.get(name)})
    require_same_tree(who, name, extra[name], updates)
    return extra[name]


def require_choice(who: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless `value` is among `allowed`."""
    if value not in allowed:
        raise ValueError(
            f"{who}: {name} = {value!r}, expected one of {', '.join(allowed)}"
        )


def at_params(tree: Tree, params: Tree, dtype: Any = None) -> Tree:
    """A copy of `tree`, sharded as the parameters are.

    Leaves whose parameter is masked out (by `freeze` or `optax.masked`) are left out.
    A copy, because the training step donates the optimizer state. Axes of `tree` may
    have size 1.

    Raises:
      ValueError: `tree` has another structure, or a leaf does not broadcast.
    """

    def copy(param: Any, leaf: Any) -> Any:
        if is_cut(param):
            return param
        shape = jnp.shape(leaf)
        fits = len(shape) == param.ndim and all(
            n in (1, full) for n, full in zip(shape, param.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"an array of shape {shape} does not fit a parameter of {param.shape}"
            )
        if dtype is not None:
            leaf = leaf.astype(dtype)
        sharding = _spread(param)
        if sharding is None:
            return jnp.array(leaf, copy=True)
        if shape != param.shape:
            sharding = NamedSharding(sharding.mesh, P())
        return jax.device_put(leaf, sharding, may_alias=False)

    return jax.tree.map(copy, params, tree, is_leaf=is_cut)


def is_cut(x: Any) -> bool:
    """Whether a leaf is one that `freeze` or `optax.masked` left out."""
    return isinstance(x, optax.MaskedNode)


def zero_stack(params: Tree, size: int) -> Tree:
    """Float32 zeros of shape (size, *leaf.shape), placed as the parameters are."""

    def zeros(param: Any) -> Array:
        sharding = _spread(param)
        if sharding is not None:
            axes = [None, *sharding.spec]
            # Without None behind it, as programs return it: layouts are compared.
            while axes and axes[-1] is None:
                axes.pop()
            sharding = NamedSharding(sharding.mesh, P(*axes))
        return jnp.zeros((size, *param.shape), jnp.float32, device=sharding)

    return jax.tree.map(zeros, params)


def scalar(value: Any) -> Array:
    """A float32 scalar for the state."""
    return jnp.asarray(value, jnp.float32)


def numbers(name: str, **values: Any) -> dict[str, Array]:
    """Scalars for `monitored`, whose names start with `name`."""
    return {f"{name}_{key}": scalar(value) for key, value in values.items()}


def monitored(opt_state: Any) -> dict[str, Array]:
    """The numbers that the transformations in a state stored at the last step.

    Float32 scalars named after their transformation, such as `project_against_cosine`;
    the second with a name gets the suffix `_2`. Before the first step: initial values.
    """
    found: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        if len(path) < 2 or getattr(path[-2], "name", None) != "monitored":
            continue
        name, number = path[-1].key, 1
        while (name if number == 1 else f"{name}_{number}") in found:
            number += 1
        found[name if number == 1 else f"{name}_{number}"] = leaf
    return found


def _spread(param: Any) -> NamedSharding | None:
    """The layout of a concrete array on a mesh of several devices."""
    if isinstance(param, Tracer) or not isinstance(param, jax.Array):
        return None
    sharding = param.sharding
    if isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1:
        return sharding
    return None
