"""Affine maps, their parameters, and dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key

INIT_STD = 0.02
"""Standard deviation of every weight matrix at initialisation."""


def affine(
    x: Float[Array, "*batch I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, "O"] | None,
) -> Float[Array, "*batch O"]:
    """`x kernel + bias` in the dtype of `x`.

    Batch axes are flattened for the product: on CPU the gradient of a large kernel is
    then twice as fast, because no cotangent is copied to another layout.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    if bias is not None:
        y = y + bias.astype(x.dtype)[None, :]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""]) -> Array:
    """Zero each element with probability `rate` and rescale so the mean is kept.

    Compares raw 32-bit draws: on CPU that is cheaper than making uniform floats, and
    than the 16-bit draws that would halve the memory.
    """
    dropped = round(rate * 2**32)
    if dropped == 0:
        return x
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    scale = 2**32 / (2**32 - dropped)
    return jnp.where(bits >= jnp.uint32(dropped), x * scale, jnp.zeros((), x.dtype))


class Projection(nn.Module):
    """Holds `kernel` (in, out) and perhaps `bias`; returns them rather than apply.

    The caller multiplies, so that it may fuse several projections into one product.
    """

    features: int
    bias: bool
    std: float
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array | None]:
        """The kernel for `inputs` input features, and the bias or None."""
        normal = nn.initializers.normal(self.std)
        kernel = self.param("kernel", normal, (inputs, self.features), self.param_dtype)
        if not self.bias:
            return kernel, None
        zeros = nn.initializers.zeros
        return kernel, self.param("bias", zeros, (self.features,), self.param_dtype)
