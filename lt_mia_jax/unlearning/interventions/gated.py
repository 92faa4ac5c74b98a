"""GUARD-IT as one value: vectors, and the gate that decides from the prompt alone."""

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
    """Texts whose prompt is near a forgotten topic are turned away from it.

    The prompt is embedded by the model itself: the mean of the stream over its tokens,
    at the layer where this acts. The stream is causal, so that no token of an answer
    has any part in it. The paper's sentence encoder is another model, which would have
    to be at hand wherever this one runs.

    Source: GUARD-IT, arXiv 2605.12765, but for the embedding.
    """

    vectors: Float[Array | np.ndarray, "K D"]
    """What each topic is turned away from; see `directions.cluster_vectors`."""
    centroids: Float[Array | np.ndarray, "K D"]
    """Mean prompt embedding of each topic; see `directions.cluster`."""
    threshold: Scalar
    """Cosine with a centroid above which the gate opens."""
    strength: Scalar = 1.0
    """How far to go, in multiples of the vectors."""
    lengths: Int[Array | np.ndarray, "B"] | None = None
    """Tokens of each prompt of a batch; see `interventions.prompted`."""
    weighting: Weighting = field(default="mean", metadata={"static": True})
    """How the topics of an open gate share; see `gates.gate_weights`."""

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
