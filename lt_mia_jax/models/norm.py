"""Layer and root-mean-square normalization."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.models.config import LayerNorm, Norm
from lt_mia_jax.models.execution import recomputed


def layer_norm(
    x: Float[Array, "*batch D"],
    scale: Float[Array, "*heads D"] | None,
    bias: Float[Array, "*heads D"] | None,
    *,
    eps: float,
) -> Float[Array, "*batch D"]:
    """Normalize to zero mean and unit variance over D, then apply scale and bias.

    The result has the dtype of `x`, statistics are float32. Parameters match the last
    axes of `x`; None skips that step.

    Source: "Layer Normalization", arXiv 1607.06450, eq. 4, with biased variance.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    centered = wide - mean
    variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
    unit = centered * jax.lax.rsqrt(variance + eps)
    if scale is not None:
        unit = unit * _lead(scale, x.ndim)
    if bias is not None:
        unit = unit + _lead(bias, x.ndim)
    return unit.astype(x.dtype)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, "*heads D"], *, eps: float
) -> Float[Array, "*batch D"]:
    """Normalize to unit root mean square over D, then scale; dtypes as `layer_norm`.

    Source: "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    unit = wide * jax.lax.rsqrt(mean_square + eps)
    return (unit * _lead(scale, x.ndim)).astype(x.dtype)


def _lead(parameter: Float[Array, "*heads D"], ndim: int) -> Array:
    """The parameter with leading axes of length one up to `ndim` axes."""
    return parameter.reshape((1,) * (ndim - parameter.ndim) + parameter.shape)


class Normalize(nn.Module):
    """A normalization layer; the class of `config` selects the function."""

    config: Norm
    param_dtype: jnp.dtype
    heads: int | None = None
    """Number of heads (last axis but one) with their own parameters; None: shared."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalize over the last axis."""
        config = self.config
        shape = x.shape[-1:] if self.heads is None else (self.heads, x.shape[-1])

        def parameter(name: str, initial: float) -> Array:
            value = nn.initializers.constant(initial)
            return self.param(name, value, shape, self.param_dtype)

        if isinstance(config, LayerNorm):
            scale = parameter("scale", 1.0) if config.scale else None
            bias = parameter("bias", 0.0) if config.bias else None
            return recomputed(partial(layer_norm, eps=config.eps))(x, scale, bias)
        scale = parameter("scale", 0.0 if config.unit_offset else 1.0)
        if config.unit_offset:
            scale = 1.0 + scale.astype(jnp.float32)
        return recomputed(partial(rms_norm, eps=config.eps))(x, scale)
