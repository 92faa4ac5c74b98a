"""Layer and root-mean-square normalisation."""

from functools import partial
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.models.config import Norm
from lt_mia_jax.models.execution import recomputed


def layer_norm(
    x: Float[Array, "B T D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    *,
    eps: float,
) -> Float[Array, "B T D"]:
    """Zero mean and unit variance over D, then scale and bias; dtype of `x`.

    Statistics are float32 whatever the dtype of `x`.

    Source: "Layer Normalization", arXiv 1607.06450, eq. 4, with biased variance.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    centred = wide - mean
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + eps)
    return (unit * scale[None, None, :] + bias[None, None, :]).astype(x.dtype)


def rms_norm(
    x: Float[Array, "B T D"], scale: Float[Array, "D"], *, eps: float
) -> Float[Array, "B T D"]:
    """Unit root mean square over D, then scale; dtype of `x`, statistics float32.

    Source: "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    unit = wide * jax.lax.rsqrt(mean_square + eps)
    return (unit * scale[None, None, :]).astype(x.dtype)


class Normalise(nn.Module):
    """Parameters of one norm; `config.kind` picks the function."""

    config: Norm
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalise over the last axis."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        match self.config.kind:
            case "layer":
                bias = self.param(
                    "bias", nn.initializers.zeros, shape, self.param_dtype
                )
                function = recomputed(partial(layer_norm, eps=self.config.eps))
                return function(x, scale, bias)
            case "rms":
                return recomputed(partial(rms_norm, eps=self.config.eps))(x, scale)
            case _:
                assert_never(self.config.kind)
