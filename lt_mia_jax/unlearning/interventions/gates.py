"""Gates: decide from the prompt whether an intervention acts on a text."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, UInt


def prompt_mask(
    attention_mask: UInt[Array | np.ndarray, "B T"],
    label_mask: UInt[Array | np.ndarray, "B T"],
) -> UInt[Array, "B T"]:
    """1 on the real tokens before the first target: what a gate may see."""
    before = jnp.cumsum(jnp.asarray(label_mask, jnp.int32), axis=1) == 0
    return jnp.asarray(attention_mask) * before.astype(attention_mask.dtype)


def masked_mean(
    stream: Float[Array, "B T D"],
    mask: UInt[Array | np.ndarray, "B T"] | Bool[Array, "B T"],
) -> Float[Array, "B D"]:
    """Mean over the tokens where `mask` is set, in float32; zero if there is none."""
    kept = jnp.asarray(mask)[..., None] > 0
    total = jnp.where(kept, stream.astype(jnp.float32), 0.0).sum(axis=1)
    return total / jnp.maximum(kept.sum(axis=1), 1)


def prompt_similarity(
    table: Float[Array | np.ndarray, "V E"],
    input_ids: Int[Array | np.ndarray, "B T"],
    mask: UInt[Array | np.ndarray, "B T"],
    centroids: Float[Array | np.ndarray, "K E"],
) -> Float[Array, "B K"]:
    """Cosine of each prompt's mean token embedding with each centroid.

    Example:
      >>> ids, mask = np.array([[0, 0], [0, 1]]), np.ones((2, 2))
      >>> prompt_similarity(np.eye(2), ids, mask, np.array([[1.0, 0.0]])).round(2)
      Array([[1.  ],
             [0.71]], dtype=float32)

    Args:
      table: token embeddings, such as `params["embedding"]["tokens"]`.
      input_ids: prompts, perhaps with their answers.
      mask: 1 on the tokens of the prompt only; see `prompt_mask`.
      centroids: see `directions.cluster`.
    """
    embeddings = masked_mean(jnp.asarray(table)[jnp.asarray(input_ids)], mask)
    return cosine_similarity(embeddings, centroids)


def cosine_similarity(
    embeddings: Float[Array | np.ndarray, "B E"],
    centroids: Float[Array | np.ndarray, "K E"],
) -> Float[Array, "B K"]:
    """Cosine of each row of one with each row of the other; zero for a zero row."""

    def unit(rows: Array | np.ndarray) -> Array:
        wide = jnp.asarray(rows, jnp.float32)
        length = jnp.linalg.norm(wide, axis=1, keepdims=True)
        return wide / jnp.where(length > 0, length, 1.0)

    return jnp.matmul(unit(embeddings), unit(centroids).T, precision="highest")


def gate_weights(
    similarity: Float[Array, "B K"],
    threshold: Float[Array | np.ndarray, ""] | float,
    *,
    weighting: Literal["mean", "similarity"] = "mean",
) -> Float[Array, "B K"]:
    """Each text's weights of the vectors; their sum is 1, or 0 for a closed gate.

    A cluster is active if its similarity is above the threshold. Active clusters count
    equally ("mean") or in proportion to their similarity if positive ("similarity").

    Args:
      similarity: cosine of prompts with centroids.
      threshold: see `directions.threshold_for_rate`; the paper's is 0.55, for
        embeddings of a sentence encoder.
      weighting: how active clusters are combined.

    Source: GUARD-IT, arXiv 2605.12765: "mean" on TOFU, "similarity" on MUSE.
    """
    active = similarity > threshold
    match weighting:
        case "mean":
            share = jnp.ones_like(similarity)
        case "similarity":
            share = jnp.maximum(similarity, 0.0)
    share = jnp.where(active, share, 0.0)
    total = share.sum(axis=1, keepdims=True)
    return share / jnp.where(total > 0, total, 1.0)
