"""Sampling continuations in batches, with the log probabilities of what was drawn."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.language_model import Adapters, DecodingState, LanguageModel
from lt_mia_jax.models.mixers.attention import is_causal


class Sampled(NamedTuple):
    """Continuations of prompts."""

    tokens: Int[Array, "B N"]
    """New tokens; after the end of a row, the end token (0 without one) repeated."""
    lengths: Int[Array, "B"]
    """Number of new tokens of each row, its end token included."""
    log_probs: Float[Array, "B N"]
    """Log probability of each new token at the temperature, before `top_p` cuts the
    distribution; of greedy decoding that at temperature 1. 0 after the end of a row."""


def sample(
    model: LanguageModel,
    params: Params,
    prompts: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    *,
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_p: float | Float[Array, ""] | None = None,
    end_tokens: Sequence[int] = (),
    adapters: Adapters | None = None,
) -> Sampled:
    """Draw continuations; the models remember what they have read.

    Row b draws from `fold_in(key, b)`, so a row does not depend on the rows beside it
    or on the devices. Each shape compiles once: lengths, temperature, `top_p` and
    tokens are data. Decoding stops when all rows have ended.

    Args:
      model: the model without its adapters; any family.
      params: its parameters.
      prompts: token ids, padded on the right; the padding is never read.
      lengths: tokens of each prompt, at least one; not checked under jit.
      key: seed of all draws.
      max_new_tokens: N, the maximum number of tokens to add.
      temperature: divides the logits; 0 takes the most likely token, of equal ones the
        lowest id.
      top_p: draw only from the most likely tokens that together have this probability;
        None does not cut (and does not sort).
      end_tokens: each ends a row, and belongs to it.
      adapters: see `LanguageModel.apply`; for a fine-tuned model these are
        `finetune.lora.scaled(params["adapters"], scale)`, with `params["base"]`.

    Example:
      >>> from lt_mia_jax.models import mamba_like
      >>> model = LanguageModel(mamba_like(64, width=16, layers=1))
      >>> params, key = model.init(jax.random.key(0)), jax.random.key(1)
      >>> prompts = np.array([[3, 1, 0], [3, 1, 4]])
      >>> lengths = np.array([2, 3])
      >>> found = sample(model, params, prompts, lengths, key=key, max_new_tokens=5)
      >>> found.tokens.shape, found.lengths
      ((2, 5), Array([5, 5], dtype=int32))

    Raises:
      InputError: N below 1, a length outside [1, T], a temperature below 0, `top_p`
        outside (0, 1], T + N above the model's learned positions, or a model that is
        not causal.

    Source: nucleus sampling, arXiv 1904.09751, section 3.1.
    """
    check_prompts(model, prompts, lengths, max_new_tokens)
    for name, value, fits in (
        ("temperature", temperature, lambda x: x >= 0),
        ("top_p", top_p, lambda x: 0 < x <= 1),
    ):
        if value is not None and not isinstance(value, Tracer) and not fits(value):
            expected = "at least 0" if name == "temperature" else "above 0, at most 1"
            raise InputError(f"{name} = {value}, expected {expected}")
    return _sample(
        model,
        max_new_tokens,
        params,
        jnp.asarray(prompts, jnp.int32),
        jnp.asarray(lengths, jnp.int32),
        key,
        jnp.float32(temperature),
        None if top_p is None else jnp.float32(top_p),
        jnp.asarray(list(end_tokens), jnp.int32),
        adapters,
    )


def check_prompts(
    model: LanguageModel,
    prompts: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"] | Sequence[int],
    max_new_tokens: int,
) -> None:
    """Refuse lengths that do not fit, and models that are not causal: `InputError`."""
    if not is_causal(model.config):
        raise InputError(
            "this model sees later tokens and cannot append them one by one; decode "
            "it with policy.diffusion"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens}, expected at least 1")
    if not isinstance(lengths, Tracer):
        found = np.asarray(lengths)
        wrong = np.flatnonzero((found < 1) | (found > prompts.shape[1]))
        if wrong.size:
            raise InputError(
                f"prompts {wrong.tolist()} have lengths {found[wrong].tolist()}; "
                f"expected 1 to {prompts.shape[1]}, the width of `prompts`"
            )


class _Loop(NamedTuple):
    step: Array
    logits: Float[Array, "B V"]
    state: DecodingState
    found: Sampled
    ended: Bool[Array, "B"]


@partial(jax.jit, static_argnums=(0, 1))
def _sample(
    model: LanguageModel,
    count: int,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""] | None,
    ends: Int[Array, "E"],
    adapters: Adapters | None,
) -> Sampled:
    rows, width = prompts.shape
    # The last new token is never read.
    advance = partial(
        model.advance, params, memory=width + count - 1, adapters=adapters
    )
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))
    filler = jnp.max(ends, initial=0) if ends.size != 1 else ends[0]
    draw = _drawn(temperature, top_p)

    def goes_on(loop: _Loop) -> Array:
        return (loop.step < count) & ~loop.ended.all()

    def add_token(loop: _Loop) -> _Loop:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
        token, log_prob = draw(now, loop.logits)
        token = jnp.where(loop.ended, filler, token)
        log_prob = jnp.where(loop.ended, 0.0, log_prob)
        ended = loop.ended | (token[:, None] == ends[None, :]).any(axis=1)
        tokens, log_probs = (
            lax.dynamic_update_index_in_dim(old, new, loop.step, axis=1)
            for old, new in (
                (loop.found.tokens, token),
                (loop.found.log_probs, log_prob),
            )
        )
        found = Sampled(tokens, loop.found.lengths + ~loop.ended, log_probs)
        logits, state = advance(token[:, None], ~ended[:, None], loop.state)
        return _Loop(loop.step + 1, logits, state, found, ended)

    real = jnp.arange(width)[None, :] < lengths[:, None]
    logits, state = advance(prompts, real)
    start = Sampled(
        tokens=jnp.broadcast_to(filler, (rows, count)).astype(jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        log_probs=jnp.zeros((rows, count), jnp.float32),
    )
    ended = jnp.zeros(rows, bool)
    loop = _Loop(jnp.zeros((), jnp.int32), logits, state, start, ended)
    return lax.while_loop(goes_on, add_token, loop).found


def _drawn(
    temperature: Float[Array, ""], top_p: Float[Array, ""] | None
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """From keys and logits to one token a row, and its log probability."""

    def draw(keys: Array, logits: Float[Array, "B V"]) -> tuple[Array, Array]:
        warm = logits / jnp.where(temperature > 0, temperature, 1.0)
        log_probs = jax.nn.log_softmax(warm)
        allowed = log_probs if top_p is None else nucleus(log_probs, top_p)
        drawn = jax.vmap(jax.random.categorical)(keys, allowed)
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))
        token = token.astype(jnp.int32)
        return token, jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]

    return draw


def nucleus(log_probs: Float[Array, "B V"], top_p: Float[Array, ""]) -> Array:
    """-inf outside the most likely tokens that together reach `top_p`.

    At least one token stays, and so do all that are as likely as the last one.
    """
    ordered = jnp.sort(jnp.exp(log_probs), axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    least = jnp.min(ordered, axis=-1, where=before < top_p, initial=jnp.inf)
    return jnp.where(jnp.exp(log_probs) >= least[:, None], log_probs, -jnp.inf)
