"""The real-gated linear recurrent unit, behind a short convolution."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.models.config import RgLru
from lt_mia_jax.models.execution import CallConfig, Place
from lt_mia_jax.models.feedforward import activate
from lt_mia_jax.models.mixers.convolution import ShortConvolution
from lt_mia_jax.models.mixers.recurrence import linear_recurrence
from lt_mia_jax.models.mixers.stateful import continue_linear
from lt_mia_jax.models.projection import Projection, affine_together, projected

SHARPNESS = 8.0
"""Exponent of the decay; the constant c of the paper."""

LARGEST_SQRT_SLOPE = 1000.0
"""Bound on the derivative of the square root near zero."""


@jax.custom_jvp
def bounded_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose derivative is at most 1000.

    The exact derivative is infinite at a decay of one.

    Source: `SqrtBoundDerivative` of RecurrentGemma.
    """
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]):
    (x,) = primals
    bounded = jnp.maximum(4.0 * x, LARGEST_SQRT_SLOPE**-2)
    return jnp.sqrt(x), tangents[0] * jax.lax.rsqrt(bounded)


class RgLruMixer(nn.Module):
    """A gated linear recurrence in one branch, an activation in the other.

    Source: "Griffin", arXiv 2402.19427, sections 2.3 and 2.4; the first token enters
    unscaled, as in the released code.
    """

    config: RgLru
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Mix tokens."""
        config, context = self.config, self.context
        width, model_width = config.width, x.shape[-1]
        parts = [
            Projection(width, True, context, name=name)(model_width)
            for name in ("gate", "input")
        ]
        both = affine_together(x, parts)
        gate = activate(both[..., :width], config.activation)
        convolve = ShortConvolution(
            config.conv_width,
            True,
            context,
            std=(0.01 / config.conv_width) ** 0.5,
            name="conv",
        )
        inner = convolve(both[..., width:], place)
        y = GatedRecurrence(config, context, name="recurrence")(inner, place)
        y = y * gate
        return projected(y, model_width, True, context, "output", to_residual=True)


class GatedRecurrence(nn.Module):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t) with input-dependent a and i."""

    config: RgLru
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """The states, in the dtype of `x`; gates and states are float32."""
        heads, width = self.config.heads, self.config.width
        open_input = BlockGate(heads, self.context, name="input_gate")(x)
        open_decay = BlockGate(heads, self.context, name="decay_gate")(x)
        rate = jax.nn.softplus(self.param("decay", _decay, (width,), jnp.float32))
        log_decay = -SHARPNESS * open_decay * rate[None, None, :]
        keep = bounded_sqrt(1.0 - jnp.exp(2.0 * log_decay))
        # The first token has no earlier state that would make up for a smaller input.
        first = jnp.atleast_2d(place.positions == 0)[:, :, None]
        keep = jnp.where(first, 1.0, keep)
        entering = x * (open_input * keep).astype(x.dtype)
        decay = jnp.exp(log_decay).astype(jnp.float32)
        if self.context.memory:
            return continue_linear(self, decay, entering, place)
        return linear_recurrence(decay, entering, form=self.context.recurrence)


class BlockGate(nn.Module):
    """Sigmoid of a block-diagonal affine map: each head sees its own channels."""

    heads: int
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Values in (0, 1), float32."""
        size, dtype = x.shape[-1] // self.heads, self.context.param_dtype
        # Not named "kernel", because adapters must not change it.
        normal = nn.initializers.normal(size**-0.5)
        blocks = self.param("blocks", normal, (self.heads, size, size), dtype)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.heads, size), dtype)
        split = x.reshape(*x.shape[:-1], self.heads, size)
        y = jnp.einsum("bthi,hio->btho", split, blocks.astype(x.dtype))
        y = (y + bias.astype(x.dtype)[None, None]).reshape(x.shape)
        return jax.nn.sigmoid(y.astype(jnp.float32))


def _decay(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "D"]:
    """Initial values with exp(-2 softplus) uniform between .9^2 and .999^2."""
    square = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))
