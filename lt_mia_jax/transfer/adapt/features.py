"""Features of whole texts from a language model, and vectors of length one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.models.language_model import LanguageModel

Features = Callable[[Any, Any], Array]
"""(parameters, inputs) to features "B D"; in a Flax module it must be hashable."""


def unit(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """Vectors scaled to length 1; zero stays zero, and has a derivative."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))


@dataclass(frozen=True)
class TextFeatures:
    """The mean over a text's tokens of the stream after the last layer, float32.

    All texts of a batch have the same length. The head of the model is not used.
    """

    model: LanguageModel

    def __call__(
        self, params: Params, ids: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B D"]:
        """The features of each text."""
        last = self.model.config.layers
        _, taps = self.model.apply(params, ids, capture=(last,))
        return taps[last].astype(jnp.float32).mean(axis=1)
