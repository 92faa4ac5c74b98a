"""The short causal convolution before a recurrence."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.models.execution import CallConfig, Place
from lt_mia_jax.models.mixers.stateful import preceded


def short_convolution(
    x: Float[Array, "B P D"], taps: Float[Array, "W D"], bias: Float[Array, "D"] | None
) -> Float[Array, "B T D"]:
    """Weighted sum of each channel's last W values, plus a bias; dtype of `x`.

    The last tap is the weight of the current token. `x` begins W - 1 tokens before the
    first result (`stateful.preceded`): P = T + W - 1.

    Source: "Mamba", arXiv 2312.00752, section 3.4, figure 3.
    """
    width = taps.shape[0]
    length = x.shape[1] - width + 1
    taps = taps.astype(x.dtype)
    # A sum of shifted products: a grouped convolution is not vectorized on CPU.
    total = sum(x[:, w : w + length] * taps[w][None, None, :] for w in range(width))
    if bias is not None:
        total = total + bias.astype(x.dtype)[None, None, :]
    return jnp.asarray(total)


class ShortConvolution(nn.Module):
    """A layer of `short_convolution`."""

    width: int
    bias: bool
    context: CallConfig
    std: float | None = None
    """Initial standard deviation of the taps; None is uniform in +-W^-1/2."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Convolve along the token axis."""
        channels, dtype = x.shape[-1], self.context.param_dtype
        bound = self.width**-0.5

        def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        initial = uniform if self.std is None else nn.initializers.normal(self.std)
        # Not named "kernel", because adapters must not change it.
        taps = self.param("taps", initial, (self.width, channels), dtype)
        bias = None
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), dtype)
        x = preceded(self, x, self.width - 1, place)
        return short_convolution(x, taps, bias)
