"""Gates: decide from the prompt whether an intervention acts on a text."""

from dataclasses import field, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, UInt
from lt_mia_jax.models.placement import check_rows
from lt_mia_jax.trees import pytree
from lt_mia_jax.unlearning.interventions.edits import Rotation, Scalar

Weighting = Literal["mean", "similarity"]


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
    weighting: Weighting = "mean",
) -> Float[Array, "B K"]:
    """Each text's weights of the vectors; their sum is 1, or 0 for a closed gate.

    A cluster is active if its similarity is above the threshold. Active clusters count
    equally ("mean") or in proportion to their similarity if positive ("similarity").
    The paper's threshold is 0.55, for embeddings of a sentence encoder.

    Source: GUARD-IT, arXiv 2605.12765: "mean" on TOFU, "similarity" on MUSE.
    """
    share = jnp.maximum(similarity, 0.0)
    if weighting == "mean":
        share = jnp.ones_like(similarity)
    share = jnp.where(similarity > threshold, share, 0.0)
    total = share.sum(axis=1, keepdims=True)
    return share / jnp.where(total > 0, total, 1.0)


@pytree
class GatedRotation:
    """Rotate the stream of texts whose prompt is near a forgotten topic away from it.

    The prompt is embedded by the mean of the model's own stream over its tokens, at the
    layer where this acts; the paper uses a sentence encoder. The stream is causal, so
    the answer has no influence.

    Source: GUARD-IT, arXiv 2605.12765, but for the embedding.
    """

    vectors: Float[Array | np.ndarray, "K D"]
    """Steering vector of each topic; see `directions.cluster_vectors`."""
    centroids: Float[Array | np.ndarray, "K D"]
    """Mean prompt embedding of each topic; see `directions.cluster`."""
    threshold: Scalar
    """Cosine with a centroid above which the gate opens."""
    strength: Scalar = 1.0
    """Size of the rotation, in multiples of the vectors."""
    lengths: Int[Array | np.ndarray, "B"] | None = None
    """Tokens of each prompt of a batch; see `placement.prompted`."""
    weighting: Weighting = field(default="mean", metadata={"static": True})
    """How the vectors of several topics are combined; see `gate_weights`."""

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> "GatedRotation":
        """The same for texts with prompts of these lengths."""
        return replace(self, lengths=lengths)

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream; where the gate is closed the same bits."""
        check_rows("lengths", self.lengths, stream)
        lengths = jnp.asarray(self.lengths)
        prompt = jnp.arange(stream.shape[1])[None, :] < lengths[:, None]
        embedding = masked_mean(stream, prompt)
        similarity = cosine_similarity(embedding, self.centroids)
        weights = gate_weights(similarity, self.threshold, weighting=self.weighting)
        return Rotation(self.vectors, weights, self.strength)(stream, layer)
