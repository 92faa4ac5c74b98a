"""What mixers remember from call to call, for decoding token by token.

With `CallConfig.memory` every mixer continues where it stopped: keys and values, the
last inputs of convolutions, and the states of recurrences are in the Flax collection
"state". Texts are padded on the right; padding changes no state. Nothing here has a
gradient of its own; training uses `recurrence`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.models.execution import Place
from lt_mia_jax.models.mixers.recurrence import (
    LOWEST,
    add_states,
    next_state,
    read_state,
    state_product,
)

STATE = "state"


def preceded(
    module: Any, x: Float[Array, "B T D"], count: int, place: Place
) -> Float[Array, "B P D"]:
    """`x` behind the `count` inputs before it; zeros before the text."""
    if not module.context.memory:
        return jnp.pad(x, ((0, 0), (count, 0), (0, 0)))
    shape = (x.shape[0], count, x.shape[2])
    tail = module.variable(STATE, "before", jnp.zeros, shape, x.dtype)
    joined = jnp.concatenate([tail.value, x], axis=1)
    tail.value = jax.vmap(
        lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, count)
    )(joined, real_tokens(place).sum(axis=1))
    return joined


def remembered(
    module: Any, name: str, x: Float[Array, "B T G K"], place: Place
) -> Float[Array, "B M G K"]:
    """Keys or values of all tokens so far, those of `x` at their positions."""
    rows, _, *sizes = x.shape
    length = module.context.memory
    past = module.variable(STATE, name, jnp.zeros, (rows, length, *sizes), x.dtype)
    # Out of range is dropped: padding, and what does not fit.
    places = jnp.where(real_tokens(place), place.positions, length)
    past.value = jax.vmap(lambda old, at, new: old.at[at].set(new, mode="drop"))(
        past.value, places, x
    )
    return past.value


def real_tokens(place: Place) -> Bool[Array, "B T"]:
    """Which tokens are no padding."""
    assert place.real is not None, "a state needs to know what is padding"
    return place.real


def continue_linear(
    module: Any, decay: Float[Array, "B T D"], x: Float[Array, "B T D"], place: Place
) -> Float[Array, "B T D"]:
    """`recurrence.linear_recurrence` from the state of `module`."""

    def step(state: Array, decay: Array, x: Array) -> tuple[Array, Array]:
        state = decay * state + x
        return state, state

    start = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    return _continue(module, step, start, (decay, x), place).astype(x.dtype)


def continue_selective(
    module: Any,
    x: Float[Array, "B T D"],
    step: Float[Array, "B T D"],
    decay: Float[Array, "D S"],
    input_map: Float[Array, "B T S"],
    output_map: Float[Array, "B T S"],
    place: Place,
) -> Float[Array, "B T D"]:
    """`recurrence.selective_scan` from the state of `module`."""
    rate = decay.astype(jnp.float32).T[None]

    def one(
        state: Array, x: Array, step: Array, into: Array, out: Array
    ) -> tuple[Array, Array]:
        state = next_state(rate, state, step, step * x, into)
        return state, state_product(state, out)

    start = jnp.zeros((x.shape[0], *rate.shape[1:]), jnp.float32)
    inputs = x, step, input_map, output_map
    return _continue(module, one, start, inputs, place).astype(x.dtype)


def continue_wkv(
    module: Any,
    decay: Float[Array, "D"],
    bonus: Float[Array, "D"],
    key: Float[Array, "B T D"],
    value: Float[Array, "B T D"],
    place: Place,
) -> Float[Array, "B T D"]:
    """`recurrence.wkv` from the state of `module`."""
    fall = jnp.exp(decay.astype(jnp.float32))[None]
    bonus = bonus.astype(jnp.float32)[None]

    def one(state: Any, key: Array, value: Array) -> tuple[Any, Array]:
        y = read_state(state, bonus + key, value)
        return add_states(state, -fall, (key, value, jnp.ones_like(key))), y

    zero = jnp.zeros((key.shape[0], key.shape[2]), jnp.float32)
    start = jnp.full_like(zero, LOWEST), zero, zero
    return _continue(module, one, start, (key, value), place).astype(value.dtype)


def _continue(
    module: nn.Module,
    step: Callable[..., tuple[Any, Array]],
    start: Any,
    inputs: tuple[Array, ...],
    place: Place,
) -> Float[Array, "B T D"]:
    """Outputs of all steps; afterwards the state is that behind the real tokens."""
    hidden = module.variable(STATE, "hidden", lambda: start)

    def one(state: Any, now: tuple[Array, ...]) -> tuple[Any, Array]:
        real, *given = now
        after, y = step(state, *given)

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(real.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(kept, after, state), y

    moved = [a.astype(jnp.float32).swapaxes(0, 1) for a in inputs]
    hidden.value, y = jax.lax.scan(
        one, hidden.value, (real_tokens(place).swapaxes(0, 1), *moved)
    )
    return y.swapaxes(0, 1)
