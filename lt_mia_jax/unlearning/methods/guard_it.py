"""GUARD-IT: a gated rotation of activations, fitted without training."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import fetch
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import AtLayers
from lt_mia_jax.unlearning.interventions import directions
from lt_mia_jax.unlearning.interventions.gates import (
    GatedRotation,
    Weighting,
    cosine_similarity,
    masked_mean,
    prompt_mask,
)
from lt_mia_jax.unlearning.methods.method import Method
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch


def _as_fitted(trained: Any) -> Intervention:
    return trained


@dataclass(frozen=True, kw_only=True)
class GuardIt(Method):
    """Rotate activations away from forgotten topics where a gate on the prompt opens.

    Nothing is trained: topics are clusters of the forget texts, each with a vector, and
    the gate sees the prompt alone (`gates.GatedRotation`). Prompts are embedded by the
    mean of the model's own residual stream, where the paper uses a sentence encoder.
    --epochs, --batch-size and --learning-rate have no effect.

    Source: GUARD-IT, arXiv 2605.12765, but for the embedding.
    """

    layer: int | None = None
    """Layer whose output is rotated; None is a quarter of the model's depth."""
    strength: float = 1.0
    """Size of the rotation, in multiples of the vectors; the paper tries [0, 1]."""
    most_topics: int = 20
    """Maximum number of clusters; from 2 up, the largest silhouette decides."""
    threshold: float | None = None
    """Cosine similarity above which the gate opens. None maximizes the recall on forget
    texts minus `penalty` times the rate on retain texts. The paper's 0.55 is for a
    sentence encoder."""
    penalty: float = 1.0
    """Cost of opening the gate for a retain text."""
    weighting: Weighting = "mean"
    """How the vectors of several open topics are combined: equally ("mean", TOFU) or by
    similarity (MUSE)."""
    weights_only = True

    @property
    def needs_forget(self) -> bool:
        """The topics are clusters of them."""
        return True

    @property
    def needs_retain(self) -> bool:
        """The gate is fitted against them."""
        return True

    def forget(self) -> None:
        """No gradient is taken."""

    def retain(self) -> None:
        """No gradient is taken."""

    def fitted(self, model: ModelConfig) -> "GuardIt":
        """With its layer."""
        layer = max(1, model.layers // 4) if self.layer is None else self.layer
        if not 0 <= layer <= model.layers:
            raise InputError(
                f"guard_it: layer = {layer}; expected 0 (the embedding) to "
                f"{model.layers} (after the last layer)"
            )
        return dataclasses.replace(self, layer=layer)

    def intervention(self) -> Callable[[Any], Intervention]:
        """The fitted gate itself."""
        return _as_fitted

    def prepare(self, setting: Setting) -> Prepared:
        """Fit the topics, their vectors, and the threshold of the gate.

        Raises:
          InputError: there are no retain texts, or no threshold opens the gate more
            often for forget prompts than for retain prompts.
        """

        def means(batch: TextBatch) -> list[np.ndarray]:
            assert self.layer is not None
            found = _means(setting.apply_fn, setting.trained, batch, self.layer)
            return [x[fetch(batch.weight) > 0] for x in fetch(found)]

        (near, forget), (far, retain) = setting.both_sides(means)
        counts = range(2, self.most_topics + 1)
        topics = directions.cluster(near, counts=counts, seed=0)
        vectors = directions.cluster_vectors(forget, topics.labels, retain)
        threshold = self.threshold
        if threshold is None:
            threshold = self._fitted_threshold(near, far, topics.centroids)
        gate = GatedRotation(
            vectors,
            topics.centroids,
            threshold,
            self.strength,
            weighting=self.weighting,
        )
        return Prepared(start=AtLayers(gate, np.asarray([self.layer], np.int32)))

    def _fitted_threshold(
        self, forget: np.ndarray, retain: np.ndarray, centroids: np.ndarray
    ) -> float:
        near, far = (
            np.asarray(cosine_similarity(prompts, centroids))
            for prompts in (forget, retain)
        )
        threshold = directions.threshold_for_recall(near, far, self.penalty)
        opened = [float((x.max(axis=1) > threshold).mean()) for x in (near, far)]
        if opened[0] <= self.penalty * opened[1]:
            raise InputError(
                "guard_it: no threshold tells the prompts to forget from those to keep "
                f"at layer {self.layer}; give questions rather than plain texts, "
                "another --method.layer, or a --method.threshold"
            )
        return threshold


@partial(jax.jit, static_argnames="layer")
def _means(
    apply_fn: ApplyFn, params: Any, batch: TextBatch, layer: int
) -> tuple[Array, Array]:
    """Mean stream over each prompt, and over prompt and answer."""
    _, streams = apply_fn(params, batch.input_ids, capture=(layer,))
    stream, whole = streams[layer], batch.attention_mask
    prompt = prompt_mask(whole, batch.label_mask)
    return masked_mean(stream, prompt), masked_mean(stream, whole)
