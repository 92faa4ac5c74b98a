"""GUARD-IT as one value: vectors, and a gate on the prompt."""

from dataclasses import field, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.models.placement import check_rows
from lt_mia_jax.trees import pytree
from lt_mia_jax.unlearning.interventions.edits import Rotation, Scalar
from lt_mia_jax.unlearning.interventions.gates import (
    cosine_similarity,
    gate_weights,
    masked_mean,
)

Weighting = Literal["mean", "similarity"]


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
    """How the vectors of several topics are combined; see `gates.gate_weights`."""

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
