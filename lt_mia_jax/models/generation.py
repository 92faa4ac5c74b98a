"""Greedy decoding for every family, also under an intervention."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_mia_jax.arrays import Array, Int, Params
from lt_mia_jax.models.language_model import Adapters, Intervention, LanguageModel
from lt_mia_jax.models.sampling import check_prompts, sample


class Generated(NamedTuple):
    """Continuations of prompts."""

    tokens: Int[Array, "B N"]
    """New tokens; after the end of a row, the end token repeated."""
    lengths: Int[Array, "B"]
    """Number of new tokens of each row, its end token included."""


def greedy(
    model: LanguageModel,
    params: Params,
    prompts: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    *,
    max_new_tokens: int,
    end_token: int | None,
    adapters: Adapters | None = None,
    intervention: Intervention | None = None,
) -> Generated:
    """Append the most likely token repeatedly; among equals, the lowest id.

    Each shape compiles once. Padding of any kind after a prompt is never read. Decoding
    stops when all rows have ended. The model remembers what it has read
    (`sampling.sample` at temperature 0). Under an intervention, which may depend on
    the place of every token, it reads the whole buffer of `T + max_new_tokens - 1`
    tokens for each new one.

    Args:
      model: the model without its adapters.
      params: its parameters.
      prompts: token ids, padded on the right.
      lengths: tokens of each prompt, at least one; not checked under jit.
      max_new_tokens: N, the maximum number of tokens to add.
      end_token: ends a row; None: every row gets N tokens.
      adapters: see `LanguageModel.apply`; for a fine-tuned model these are
        `finetune.lora.scaled(params["adapters"], scale)`, with `params["base"]`.
      intervention: see `LanguageModel.apply`; its streams are as long as the buffer. If
        it is a pytree, such as those of `unlearning.interventions` or a
        `jax.tree_util.Partial`, its arrays are data; each new plain function compiles
        again.

    Raises:
      InputError: N below 1, a length outside [1, T], a buffer longer than the model's
        learned positions, or a model that is not causal.
    """
    if intervention is None:
        found = sample(
            model,
            params,
            prompts,
            lengths,
            key=jax.random.key(0),
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            end_tokens=() if end_token is None else (end_token,),
            adapters=adapters,
        )
        return Generated(found.tokens.astype(prompts.dtype), found.lengths)
    check_prompts(model, prompts, lengths, max_new_tokens)
    # Functions are part of the program, everything else in an intervention is data.
    leaves, tree = jax.tree.flatten(intervention)
    code = tuple(leaf if callable(leaf) else None for leaf in leaves)
    data = [None if callable(leaf) else leaf for leaf in leaves]
    return _greedy(
        model,
        max_new_tokens,
        (tree, code),
        params,
        jnp.asarray(prompts),
        jnp.asarray(lengths, jnp.int32),
        # Ids are never negative, so -1 ends no row.
        jnp.asarray(-1 if end_token is None else end_token, jnp.int32),
        adapters,
        data,
    )


class _State(NamedTuple):
    step: Array
    buffer: Int[Array, "B W"]
    tokens: Int[Array, "B N"]
    lengths: Int[Array, "B"]
    ended: Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def _greedy(
    model: LanguageModel,
    count: int,
    program: tuple[Any, tuple[Any, ...]],
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    end: Int[Array, ""],
    adapters: Adapters | None,
    data: list[Any],
) -> Generated:
    tree, code = program
    intervention = jax.tree.unflatten(
        tree, [d if c is None else c for c, d in zip(code, data, strict=True)]
    )
    rows = prompts.shape[0]
    filler = jnp.maximum(end, 0).astype(prompts.dtype)

    def logits_at(text: Int[Array, "B W"], place: Int[Array, "B"]) -> Array:
        """Logits after one token of each row only.

        The first call captures the stream after the last layer; under jit its logits
        are never computed. The second call replaces the stream of a one-token text by
        it, so that final norm and head see only that token.
        """
        last = model.config.layers
        _, streams = model.apply(
            params, text, adapters=adapters, intervention=intervention, capture=(last,)
        )
        stream = jnp.take_along_axis(streams[last], place[:, None, None], axis=1)
        logits = model.apply(
            params,
            text[:, :1],
            adapters=adapters,
            intervention=lambda x, layer: jnp.where(layer == last, stream, x),
        )
        return logits[:, 0]

    def goes_on(state: _State) -> Array:
        return (state.step < count) & ~state.ended.all()

    def add_token(state: _State) -> _State:
        place = lengths + state.step
        logits = logits_at(state.buffer, place - 1)
        token = jnp.argmax(logits, axis=-1).astype(prompts.dtype)
        token = jnp.where(state.ended, filler, token)
        return _State(
            state.step + 1,
            # The last token of the longest row is outside the buffer; nothing reads it.
            state.buffer.at[jnp.arange(rows), place].set(token, mode="drop"),
            lax.dynamic_update_index_in_dim(state.tokens, token, state.step, axis=1),
            state.lengths + ~state.ended,
            state.ended | (token == end),
        )

    start = _State(
        step=jnp.zeros((), jnp.int32),
        buffer=jnp.pad(prompts, ((0, 0), (0, count - 1))),
        tokens=jnp.full((rows, count), filler),
        lengths=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
    )
    state = lax.while_loop(goes_on, add_token, start)
    return Generated(state.tokens, state.lengths)
