"""When a transformation acts, and where the gradient is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    is_cut,
    numbers,
    transformation,
)
from lt_mia_jax.training.transforms.products import add, norm


class AlternateState(NamedTuple):
    """State of `alternate`."""

    steps: Int[Array, ""]
    """Done so far, int32."""
    first: Any
    """State of the first transformation; moves on its own steps only."""
    second: Any
    """State of the second one."""


@transformation()
def alternate(
    first: optax.GradientTransformation,
    second: optax.GradientTransformation,
    every: int,
) -> optax.GradientTransformationExtraArgs:
    """`second` on every `every`-th step, `first` on all others.

    For example `alternate(combine_forget_retain(0, 1), combine_forget_retain(1, 0),
    every)` in front of one optimizer takes a forget step after `every - 1` retain
    steps. Both gradients are computed at every step, and both get all extra arguments.

    Raises:
      ValueError: `every` is less than 1.

    Example:
      >>> tx = alternate(optax.scale(1.0), optax.scale(-1.0), every=2)
      >>> gradient = jnp.ones(1)
      >>> state = tx.init(gradient)
      >>> for _ in range(2):
      ...     update, state = tx.update(gradient, state)
      >>> update
      Array([-1.], dtype=float32)

    Source: Learning with forgetting, arXiv 2505.19715.
    """
    if every < 1:
        raise ValueError(f"alternate: every = {every}, expected at least 1")
    first = optax.with_extra_args_support(first)
    second = optax.with_extra_args_support(second)

    def init(params: Tree) -> AlternateState:
        steps = jnp.zeros((), jnp.int32)
        return AlternateState(steps, first.init(params), second.init(params))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        state = state._replace(steps=state.steps + 1)

        def use_first() -> Step:
            step, new = first.update(updates, state.first, params, **extra)
            return step, state._replace(first=new)

        def use_second() -> Step:
            step, new = second.update(updates, state.second, params, **extra)
            return step, state._replace(second=new)

        return jax.lax.cond(state.steps % every == 0, use_second, use_first)

    return optax.GradientTransformationExtraArgs(init, update)


class SharpnessState(NamedTuple):
    """State of `sharpness_aware`."""

    inner: Any
    """State of the wrapped optimizer."""
    monitored: dict[str, Array]
    """Norm of the gradient at the parameters, and of the one beside them."""


@transformation("params", "grad_fn")
def sharpness_aware(
    inner: optax.GradientTransformation, radius: float
) -> optax.GradientTransformationExtraArgs:
    """Take the gradient at the worst nearby point, `params + radius * g / |g|`.

    What is forgotten there is harder to relearn. Costs one more forward and backward
    pass. The extra argument `grad_fn` maps parameters to the gradient that `update`
    gets, on the same batch. `freeze` belongs inside `inner`, the whole optimizer, since
    `grad_fn` takes all parameters.

    Example:
      >>> tx, params = sharpness_aware(optax.sgd(1.0), radius=1.0), jnp.array([1.0])
      >>> slope = lambda at: 2 * at  # of the square
      >>> tx.update(slope(params), tx.init(params), params, grad_fn=slope)[0]  # at 2
      Array([-4.], dtype=float32)

    Source: Sharpness-aware minimization, arXiv 2010.01412, equation 2; for unlearning,
    arXiv 2502.05374.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> SharpnessState:
        start = numbers("sharpness_aware", norm=0, moved_norm=0)
        return SharpnessState(inner.init(params), start)

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        grad_fn: Callable[[Tree], Tree] = extra.pop("grad_fn")
        if any(map(is_cut, jax.tree.leaves(updates, is_leaf=is_cut))):
            raise ValueError(
                "sharpness_aware sees a part of the parameters only; put freeze, "
                "optax.masked or optax.partition inside it"
            )
        length = norm(updates)
        factor = jnp.where(length > 0, radius / jnp.where(length > 0, length, 1.0), 0.0)
        moved = grad_fn(add(params, factor, updates))
        found = numbers("sharpness_aware", norm=length, moved_norm=norm(moved))
        step, new = inner.update(moved, state.inner, params, **extra)
        return step, SharpnessState(new, found)

    return optax.GradientTransformationExtraArgs(init, update)
