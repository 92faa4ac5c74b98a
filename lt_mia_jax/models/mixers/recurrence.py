"""Recurrences over time: RG-LRU, Mamba's selective scan and RWKV-4's average.

Each has three forms that differ in speed and memory only. "chunked" is the recommended
one. "sequential" is a plain `jax.lax.scan`, whose backward pass stores every state.
"associative" is a tree of logarithmic depth for machines with many idle lanes.

States, exponentials and sums are float32 for inputs of any dtype. The batch may be
sharded over devices, time and width may not.
"""

import functools
import operator
from typing import Any, Literal, assert_never

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float

Form = Literal["sequential", "chunked", "associative"]
"""Algorithm of a recurrence; values and gradients agree up to rounding."""

CHUNK = 16
"""Steps per chunk: the backward pass stores T / CHUNK + CHUNK states.

On a CPU neither 8 nor 32 is faster.
"""

LOWEST = -1e30
"""Running maximum before the first key; finite, so that no gradient is NaN."""

_einsum = functools.partial(jnp.einsum, precision="highest")  # float32 on TPU as well
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)  # for scan bodies


def _split(array: Array, chunk: int) -> Array:
    """Reshape B T ... to chunks, steps, B ... in float32, padded with zeros at the end.

    Chunks have equal length, at most `chunk`, so that only one length is compiled.
    """
    length = array.shape[1]
    chunks = -(-length // chunk)
    steps = -(-length // chunks)
    array = array.astype(jnp.float32).swapaxes(0, 1)
    array = jnp.pad(array, [(0, chunks * steps - length)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(chunks, steps, *array.shape[1:])


def _join(array: Array, like: Array) -> Array:
    """Inverse of `_split`, in the length and dtype of `like`."""
    array = array.reshape(-1, *array.shape[2:])[: like.shape[1]]
    return array.swapaxes(0, 1).astype(like.dtype)


def _compose(
    earlier: tuple[Array, Array], later: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Composition of two maps h -> decay * h + offset."""
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def linear_recurrence(
    decay: Float[Array, "B T D"],
    x: Float[Array, "B T D"],
    *,
    form: Form = "chunked",
    chunk: int = CHUNK,
) -> Float[Array, "B T D"]:
    """States h_t = decay_t * h_{t-1} + x_t from h_{-1} = 0; dtype of `x`.

    Source: "Griffin", arXiv 2402.19427, eq. 4, whose input gate is already in `x`.

    `decay` may have any sign and size. The "chunked" form stores nothing but states;
    `chunk` has no effect and exists for a uniform signature.
    """
    wide = decay.astype(jnp.float32), x.astype(jnp.float32)
    match form:
        case "chunked":
            states = _solve(*wide)
        case "sequential":

            def advance(state: Array, inputs: Any) -> tuple[Array, Array]:
                state = inputs[0] * state + inputs[1]
                return state, state

            inputs = tuple(a.swapaxes(0, 1) for a in wide)
            _, states = jax.lax.scan(advance, jnp.zeros_like(wide[1][:, 0]), inputs)
            states = states.swapaxes(0, 1)
        case "associative":
            states = jax.lax.associative_scan(_compose, wide, axis=1)[1]
        case _:
            assert_never(form)
    return states.astype(x.dtype)


def _solve(decay: Array, x: Array) -> Array:
    """The solution h of h - decay * delayed(h) = x.

    As a linear system, it is differentiated in both modes by solving it again; the
    transposed system is the same recurrence in reverse. On a CPU this is 1.3 times as
    fast as differentiating a scan, in half its memory, and 2.5 times as fast as
    recomputing chunks of it (gradients, 8 x 128 x 512).
    """

    def residual(state: Array) -> Array:
        return state - decay * jnp.pad(state[:, :-1], ((0, 0), (1, 0), (0, 0)))

    def forwards(_: Any, x: Array) -> Array:
        return _walk(decay, x, reverse=False)

    def backwards(_: Any, x: Array) -> Array:
        advanced = jnp.pad(decay[:, 1:], ((0, 0), (0, 1), (0, 0)))
        return _walk(advanced, x, reverse=True)

    return jax.lax.custom_linear_solve(residual, x, forwards, backwards)


def _walk(decay: Array, x: Array, *, reverse: bool) -> Array:
    """States of a loop over axis 1, which `jax.lax.scan` would move to the front."""
    length = x.shape[1]

    def advance(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, states = carry
        time = length - 1 - step if reverse else step
        state = at(decay, time) * state + at(x, time)
        return state, jax.lax.dynamic_update_index_in_dim(states, state, time, axis=1)

    def at(array: Array, time: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(array, time, axis=1, keepdims=False)

    start = jnp.zeros_like(x[:, 0]), jnp.zeros_like(x)
    return jax.lax.fori_loop(0, length, advance, start)[1]


def selective_scan(
    x: Float[Array, "B T D"],
    step: Float[Array, "B T D"],
    decay: Float[Array, "D S"],
    input_map: Float[Array, "B T S"],
    output_map: Float[Array, "B T S"],
    *,
    form: Form = "chunked",
    chunk: int = CHUNK,
) -> Float[Array, "B T D"]:
    """Mamba's outputs y_t[d] = sum_s output_map_t[s] h_t[d, s]; dtype of `x`.

    From h_{-1} = 0, the states are h_t[d, s] = exp(step_t[d] decay[d, s]) h_{t-1}[d, s]
    + step_t[d] input_map_t[s] x_t[d]. The caller adds the skip D x and the gate.

    Source: "Mamba", arXiv 2312.00752, eq. 2 and algorithm 2; as in the authors' code,
    the input is discretized by Euler's rule instead of eq. 4.

    Args:
      x: inputs after convolution and activation.
      step: positive step sizes, after softplus.
      decay: the matrix A, negative; not its logarithm.
      input_map: the matrix B of each step.
      output_map: the matrix C of each step.
      form: see `Form`. "chunked" has a custom backward pass, so `jax.jvp` needs
        "sequential" or "associative"; `jax.jvp` of `jax.grad` accepts any.
      chunk: maximum number of steps whose states are stored at once, except in the
        backward pass of "sequential".
    """
    if form == "sequential":
        chunk = x.shape[1]
    steps, into, out = (_split(a, chunk) for a in (step, input_map, output_map))
    inputs = steps, steps * _split(x, chunk), into, out
    # The width comes last, where it fills vector registers.
    rate = decay.astype(jnp.float32).T[None]  # 1 S D
    match form:
        case "chunked":
            y = _selective(rate, *inputs)
        case "sequential":
            y = _selective_forward(rate, *inputs)[0]
        case "associative":
            y = _selective_tree(rate, *inputs)
        case _:
            assert_never(form)
    return _join(y, like=x)


def next_state(
    rate: Array, state: Array, step: Array, drive: Array, into: Array
) -> Array:
    """The next state."""
    kept = jnp.exp(step[:, None] * rate) * state
    return kept + into[:, :, None] * drive[:, None]


def state_product(
    state: Float[Array, "B S D"], out: Float[Array, "B S"]
) -> Float[Array, "B D"]:
    """What is read from a state."""
    # A sum of products is 6 times slower on a CPU for a batch of one.
    return _einsum("bsd,bs->bd", state, out)


def _selective_forward(
    rate: Array, step: Array, drive: Array, into: Array, out: Array
) -> tuple[Array, Array]:
    """Outputs, and the state before each chunk; `drive` is step times input."""

    def one_step(state: Array, inputs: Any) -> tuple[Array, Array]:
        *inputs, out = inputs
        state = next_state(rate, state, *inputs)
        return state, state_product(state, out)

    def one_chunk(state: Array, inputs: Any) -> tuple[Array, tuple[Array, Array]]:
        last, y = jax.lax.scan(one_step, state, inputs)
        return last, (y, state)

    batch, width = step.shape[2:]
    start = jnp.zeros((batch, rate.shape[1], width), jnp.float32)
    return jax.lax.scan(one_chunk, start, (step, drive, into, out))[1]


@jax.custom_vjp
def _selective(*inputs: Array) -> Array:
    """Outputs; the backward pass takes half the time of the one JAX derives."""
    return _selective_forward(*inputs)[0]


def _selective_fwd(*inputs: Array) -> tuple[Array, Any]:
    y, starts = _selective_forward(*inputs)
    return y, (inputs, starts)


def _selective_bwd(residuals: Any, grads: Array) -> tuple[Array, ...]:
    (rate, step, drive, into, out), starts = residuals

    def recompute(state: Array, inputs: Any) -> tuple[Array, Array]:
        return next_state(rate, state, *inputs), state

    def one_step(carry: tuple[Array, ...], inputs: Any) -> tuple[Any, Any]:
        after, later, total = carry  # `later`: gradient of `after` from later steps
        before, step, drive, into, out, grad = inputs
        out_grad = _einsum("bsd,bd->bs", after, grad)
        state_grad = later + out[:, :, None] * grad[:, None]
        into_grad = _einsum("bsd,bd->bs", state_grad, drive)
        drive_grad = _einsum("bsd,bs->bd", state_grad, into)
        later = jnp.exp(step[:, None] * rate) * state_grad
        exponent_grad = later * before
        # `sum` makes the whole pass 2.5 times slower for a batch of one.
        weighted = exponent_grad * rate
        terms = [weighted[:, state] for state in range(rate.shape[1])]
        step_grad = functools.reduce(operator.add, terms)
        # The batch is summed after the loops, which then need no communication.
        total = total + exponent_grad * step[:, None]
        return (before, later, total), (step_grad, drive_grad, into_grad, out_grad)

    def one_chunk(carry: tuple[Array, Array], inputs: Any) -> tuple[Any, Any]:
        start, step, drive, into, out, grad = inputs
        last, before = jax.lax.scan(recompute, start, (step, drive, into))
        (_, later, total), grads = jax.lax.scan(
            one_step,
            (last, *carry),
            (before, step, drive, into, out, grad),
            reverse=True,
        )
        return (later, total), grads

    zero = jnp.zeros_like(starts[0])
    (_, total), found = jax.lax.scan(
        one_chunk, (zero, zero), (starts, step, drive, into, out, grads), reverse=True
    )
    return total.sum(axis=0, keepdims=True), *found


_selective.defvjp(_selective_fwd, _selective_bwd)


def _selective_tree(
    rate: Array, step: Array, drive: Array, into: Array, out: Array
) -> Array:
    """Outputs, by a tree within each chunk."""

    def one_chunk(state: Array, inputs: Any) -> tuple[Array, Array]:
        step, drive, into, out = inputs  # steps B D, steps B S
        factors = jnp.exp(step[:, :, None] * rate[None])
        offsets = into[..., None] * drive[:, :, None]
        factors, offsets = jax.lax.associative_scan(_compose, (factors, offsets))
        states = factors * state[None] + offsets
        return states[-1], _einsum("tbsd,tbs->tbd", states, out)

    start = jnp.zeros((step.shape[2], *rate.shape[1:]), jnp.float32)
    inputs = step, drive, into, out
    return jax.lax.scan(_recomputed(one_chunk), start, inputs)[1]


def wkv(
    decay: Float[Array, "D"],
    bonus: Float[Array, "D"],
    key: Float[Array, "B T D"],
    value: Float[Array, "B T D"],
    *,
    form: Form = "chunked",
    chunk: int = CHUNK,
) -> Float[Array, "B T D"]:
    """RWKV-4's average of values so far; dtype of `value`.

    At step t the weight of value i < t is exp(key_i - (t - 1 - i) exp(decay)), and that
    of its own value exp(key_t + bonus). Sums are relative to a running maximum of these
    exponents, so that keys of any size are safe. `decay` and `bonus` (u) are stored as
    `time_decay` and `time_first` in checkpoints. The backward pass stores one state per
    chunk and the states of one chunk.

    Source: "RWKV", arXiv 2305.13048, section 3.1.2, in the stable form of its appendix.
    """
    lanes = key.shape[0], key.shape[2]
    # With a copy per text, gradients are summed over the batch once, after all steps.
    fall, bonus = (
        jnp.broadcast_to(a.astype(jnp.float32)[None], lanes)
        for a in (jnp.exp(decay.astype(jnp.float32)), bonus)
    )
    zero = jnp.zeros(lanes, jnp.float32)
    start = jnp.full_like(zero, LOWEST), zero, zero
    match form:
        case "chunked" | "sequential":

            def one_step(state: Any, inputs: Any) -> tuple[Any, Array]:
                key, value = inputs
                y = read_state(state, bonus + key, value)
                return add_states(state, -fall, (key, value, jnp.ones_like(key))), y

            def one_chunk(state: Any, inputs: Any) -> tuple[Any, Array]:
                return jax.lax.scan(one_step, state, inputs)

            if form == "chunked":
                one_chunk = _recomputed(one_chunk)
            else:
                chunk = key.shape[1]
            inputs = _split(key, chunk), _split(value, chunk)
            y = jax.lax.scan(one_chunk, start, inputs)[1]
        case "associative":

            def merge(earlier: Any, later: Any) -> Any:
                state = add_states(earlier[1:], later[0], later[1:])
                return earlier[0] + later[0], *state

            keys, values = (_split(a, key.shape[1])[0] for a in (key, value))
            falls = jnp.broadcast_to(-fall[None], keys.shape)
            items = falls, keys, values, jnp.ones_like(keys)
            _, *states = jax.lax.associative_scan(merge, items)
            top, weighted, weight = (
                jnp.concatenate([first[None], rest[:-1]])
                for first, rest in zip(start, states, strict=True)
            )
            y = read_state((top, weighted, weight), bonus[None] + keys, values)[None]
        case _:
            assert_never(form)
    return _join(y, like=value)


State = tuple[Array, Array, Array]
"""A maximum of exponents; weighted sum of values and sum of weights relative to it."""


def add_states(earlier: State, shift: Array, later: State) -> State:
    """Both states as one, the exponents of `earlier` moved by `shift`."""
    # The result does not depend on the maximum, so it needs no gradient.
    top = jax.lax.stop_gradient(jnp.maximum(earlier[0] + shift, later[0]))
    old, new = jnp.exp(earlier[0] + shift - top), jnp.exp(later[0] - top)
    return (top, old * earlier[1] + new * later[1], old * earlier[2] + new * later[2])


def read_state(state: State, exponent: Array, value: Array) -> Array:
    """The average of `state` and one more value."""
    one = jnp.ones_like(value)
    _, weighted, weight = add_states(
        state, jnp.zeros_like(exponent), (exponent, value, one)
    )
    return weighted / weight
