"""The features of the learned attack: `7 k + 14` numbers a step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.layout import layout_of
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics


@partial(
    jax.jit, static_argnames=("k", "log_probabilities", "vocab_size", "vocab_chunk")
)
def lt_mia_features(
    target_logits: Float[Array | np.ndarray, "B T V"],
    reference_logits: Float[Array | np.ndarray, "B T _"],
    input_ids: Integer[Array | np.ndarray, "B T"],
    attention_mask: Integer[Array | np.ndarray, "B T"]
    | Bool[Array | np.ndarray, "B T"],
    *,
    k: int = 20,
    log_probabilities: bool = False,
    vocab_size: int | None = None,
    vocab_chunk: int | None = None,
) -> tuple[Float[Array, "B T C"], Bool[Array, "B T"]]:
    """LT-MIA features (float32, C = 7 k + 14) and the mask of the scored steps.

    Step t describes the prediction of token t + 1; the last step is always masked, and
    masked steps are zero even where the logits are NaN. By default the pairs hold raw
    logits, as published: adding a constant to all logits of one model changes them.

    Arguments and errors are those of `token_statistics`.

    Example:
      >>> import jax
      >>> from lt_mia_jax import lt_mia_features
      >>> target, reference = jax.random.normal(jax.random.key(0), (2, 1, 4, 50))
      >>> ids = jax.numpy.array([[3, 1, 4, 0]])
      >>> mask = jax.numpy.array([[1, 1, 1, 0]])
      >>> features, valid = lt_mia_features(target, reference, ids, mask, k=5)
      >>> features.shape, valid.tolist()
      ((1, 4, 49), [[True, True, False, False]])

    Source: per-token features of "Learning the Signature of Memorization in
    Autoregressive Language Models", arXiv 2604.03199. Ties: lowest index first.
    """
    stats = token_statistics(
        target_logits,
        reference_logits,
        input_ids,
        attention_mask,
        k=k,
        log_probabilities=log_probabilities,
        vocab_size=vocab_size,
        vocab_chunk=vocab_chunk,
    )
    return assemble(stats)


def assemble(stats: TokenStatistics) -> tuple[Any, Any]:
    """Features `"B T C"` (float32) and mask `"B T"` from statistics with `columns`.

    Works on NumPy arrays (sums of a text in float64) and on JAX arrays (float32).

    Raises:
      InputError: the statistics were taken with k = 0 or without a reference.
    """
    if stats.columns is None or stats.reference_log_prob is None:
        raise InputError(
            "these statistics have no LT-MIA columns; take them with k >= 1 and a "
            "reference model"
        )
    on_host = isinstance(stats.target_log_prob, np.ndarray)
    xp: Any = np if on_host else jnp
    layout = layout_of(stats.columns.shape[-1])
    valid = stats.valid
    wide = np.float64 if on_host else jnp.float32
    losses = -xp.stack(
        [stats.target_log_prob, stats.reference_log_prob], axis=-1
    ).astype(wide)
    difference = losses[..., :1] - losses[..., 1:]
    losses = xp.concatenate([losses, difference], axis=-1)  # B T 3
    keep = valid[..., None]
    losses = xp.where(keep, losses, 0)
    count = xp.maximum(keep.sum(axis=1, keepdims=True), 1)
    mean = losses.sum(axis=1, keepdims=True) / count
    centered = xp.where(keep, losses - mean, 0)
    std = xp.sqrt((centered**2).sum(axis=1, keepdims=True) / count + 1e-6)
    total = losses[..., 2:].sum(axis=1, keepdims=True)
    moments = xp.stack([mean, std], axis=-1).reshape(*mean.shape[:2], 6)
    text = xp.concatenate([moments, total], axis=-1)  # B 1 7
    text = xp.broadcast_to(text, (*valid.shape, 7))
    columns = layout.unpack(stats.columns.astype(np.float32))
    parts = [columns, losses.astype(np.float32), text.astype(np.float32)]
    features = xp.concatenate(parts, axis=-1)
    return xp.where(keep, features, xp.zeros((), features.dtype)), valid
