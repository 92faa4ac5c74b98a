"""Features of whole texts from a language model, for classifiers on top of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.models.language_model import LanguageModel

Features = Callable[[Any, Any], Array]
"""(parameters, inputs) to features "B D"; in a Flax module it must be hashable."""


@dataclass(frozen=True)
class TextFeatures:
    """The mean over a text's tokens of the stream after the last layer, float32.

    All texts of a batch have the same length.

    Example:
      >>> import jax
      >>> from lt_mia_jax.models import gpt2_like
      >>> model = LanguageModel(gpt2_like(64, width=16, layers=1, heads=2, context=8))
      >>> params = model.init(jax.random.key(0))
      >>> TextFeatures(model)(params, jnp.array([[3, 1, 4]])).shape
      (1, 16)
    """

    model: LanguageModel
    """The model; its head is not used."""

    def __call__(
        self, params: Params, ids: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B D"]:
        """The features of each text."""
        last = self.model.config.layers
        _, taps = self.model.apply(params, ids, capture=(last,))
        return taps[last].astype(jnp.float32).mean(axis=1)
