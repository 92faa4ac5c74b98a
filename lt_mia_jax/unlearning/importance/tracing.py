"""Causal tracing: which layers carry a fact from its subject to its answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_mia_jax.arrays import Array, Float, Int, Key, UInt
from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune.loss import token_log_probs


class Trace(NamedTuple):
    """Probabilities of the answers, each the geometric mean over its tokens."""

    clean: Float[Array, "B"]
    """Of the model as it is."""
    corrupted: Float[Array, "B"]
    """With noise on the subject; mean over the draws."""
    restored: Float[Array, "L1 B"]
    """With noise, and the clean stream restored at layer 0, 1, ...; likewise."""

    @property
    def effect(self) -> Float[Array, "L1 B"]:
        """Indirect effect of restoring each layer."""
        return self.restored - self.corrupted[None]


def causal_trace(
    params: Any,
    input_ids: Int[Array | np.ndarray, "B T"],
    subject: UInt[Array | np.ndarray, "B T"],
    answer: UInt[Array | np.ndarray, "B T"],
    *,
    apply_fn: Callable[..., Any],
    layers: int,
    key: Key[Array, ""],
    restore: UInt[Array | np.ndarray, "B T"] | None = None,
    noise: float | Float[Array, ""] = 3.0,
    draws: int = 4,
) -> Trace:
    """Probability of each answer that restoring one layer's clean stream recovers.

    Noise on the subject's embeddings destroys the fact; then the clean stream is
    restored at one layer at a time. One program serves all layers; call it under `jit`.

    Args:
      params: parameters of the model.
      input_ids: prompts with their answers.
      subject: 1 on the tokens that get the noise: those that name the subject.
      answer: 1 on the tokens of the answer, as a label mask.
      apply_fn: `LanguageModel.apply`, or anything called like it.
      layers: number of layers of the model.
      key: of the noise.
      restore: 1 where the clean stream is restored; None is the whole subject.
      noise: standard deviation of the noise, relative to that of the embeddings.
      draws: number of noise draws to average over.

    Raises:
      InputError: no draw asked for.

    Source: Locating and Editing Factual Associations in GPT (ROME), arXiv 2202.05262,
    section 2; its separate effects of attention and feed-forward need taps inside of a
    layer and are left out.
    """
    if draws < 1:
        raise InputError(f"draws = {draws}, expected at least 1")
    ids = jnp.asarray(input_ids)
    hidden = jnp.asarray(subject)[..., None] > 0
    put_back = hidden if restore is None else jnp.asarray(restore)[..., None] > 0
    logits, captured = apply_fn(params, ids, capture=tuple(range(layers + 1)))
    clean = jnp.stack([captured[layer] for layer in range(layers + 1)])
    deviation = noise * _deviation(clean[0], hidden)

    def probability(draw: Array, restored: Array) -> Float[Array, "B"]:
        own = jax.random.normal(jax.random.fold_in(key, draw), clean.shape[1:])
        own = (deviation * own).astype(clean.dtype)

        def disturb(stream: Array, layer: Array) -> Array:
            noisy = (layer == 0) & hidden
            stream = jnp.where(noisy, stream + own, stream)
            return jnp.where((layer == restored) & put_back, clean[layer], stream)

        found = apply_fn(params, ids, intervention=disturb)
        return _answer_probability(found, ids, answer)

    def all_layers(draw: Array) -> Float[Array, "L2 B"]:
        # No layer has the number -1: that is the corrupted pass.
        return lax.map(lambda n: probability(draw, n), jnp.arange(-1, layers + 1))

    found = lax.map(all_layers, jnp.arange(draws)).mean(axis=0)
    return Trace(_answer_probability(logits, ids, answer), found[0], found[1:])


def causal_layers(trace: Trace, count: int) -> tuple[int, ...]:
    """The layers with the largest mean effect, in ascending order, counted from 1.

    The embedding, layer 0, is excluded: restoring it undoes the noise.

    Raises:
      InputError: more layers than there are.

    Source: SHA256 at SemEval-2025 Task 4, arXiv 2504.12996, which so chose the first
    six layers to train.
    """
    effect = np.asarray(trace.effect, np.float64)[1:].mean(axis=1)
    if not 1 <= count <= len(effect):
        raise InputError(f"count = {count}, expected 1 to {len(effect)} layers")
    best = np.argsort(-effect, kind="stable")[:count]
    return tuple(sorted(int(layer) + 1 for layer in best))


def _deviation(stream: Float[Array, "B T D"], hidden: Array) -> Float[Array, ""]:
    """Standard deviation over all numbers of the hidden tokens."""
    found = jnp.std(stream.astype(jnp.float32), where=hidden)
    return jnp.where(hidden.any(), found, 0.0)


def _answer_probability(
    logits: Float[Array, "B T V"],
    ids: Int[Array, "B T"],
    answer: UInt[Array | np.ndarray, "B T"],
) -> Float[Array, "B"]:
    log_probs = token_log_probs(logits, jnp.roll(ids, -1, axis=1))
    scored = jnp.roll(jnp.asarray(answer), -1, axis=1).at[:, -1].set(0) > 0
    total = jnp.where(scored, log_probs, 0.0).sum(axis=1)
    return jnp.exp(total / jnp.maximum(scored.sum(axis=1), 1))
