"""The selective state-space mixer."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.models.config import Mamba
from lt_mia_jax.models.execution import CallConfig, Place
from lt_mia_jax.models.feedforward import activate
from lt_mia_jax.models.mixers.convolution import ShortConvolution
from lt_mia_jax.models.mixers.recurrence import selective_scan
from lt_mia_jax.models.mixers.stateful import continue_selective
from lt_mia_jax.models.projection import projected


class MambaMixer(nn.Module):
    """Input projection and gate, short convolution, selective scan, output projection.

    Source: "Mamba", arXiv 2312.00752, section 3.4 and algorithm 2.
    """

    config: Mamba
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Mix tokens."""
        config, context = self.config, self.context
        width, state, rank = config.width, config.state, config.step_rank
        inner = projected(x, 2 * width, config.bias, context, "input")
        scanned, gate = inner[..., :width], inner[..., width:]
        convolve = ShortConvolution(
            config.conv_width, config.conv_bias, context, name="conv"
        )
        scanned = activate(convolve(scanned, place), config.activation)
        selected = projected(scanned, rank + 2 * state, False, context, "select")
        step = TimeStep(width, context, name="step")(selected[..., :rank])
        # Always float32: rounding a decay changes how long a channel remembers.
        log_decay = self.param("log_decay", _log_decay, (width, state), jnp.float32)
        skip = self.param("skip", nn.initializers.ones, (width,), jnp.float32)
        into, out = selected[..., rank : rank + state], selected[..., rank + state :]
        inputs = scanned, step, -jnp.exp(log_decay), into, out
        if context.memory:
            y = continue_selective(self, *inputs, place)
        else:
            y = selective_scan(*inputs, form=context.recurrence)
        y = y + scanned * skip.astype(scanned.dtype)[None, None, :]
        y = y * jax.nn.silu(gate)
        return projected(
            y, x.shape[-1], config.bias, context, "output", to_residual=True
        )


class TimeStep(nn.Module):
    """Positive float32 time steps from a low-rank projection."""

    width: int
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T R"]) -> Float[Array, "B T D"]:
        """softplus(x kernel + bias)."""
        step = projected(x, self.width, False, self.context, "up")
        bias = self.param("bias", _step_bias, (self.width,), jnp.float32)
        return jax.nn.softplus(step.astype(jnp.float32) + bias[None, None, :])


def _log_decay(
    key: Key[Array, ""], shape: tuple[int, int], dtype: Any
) -> Float[Array, "D S"]:
    """Initial values log 1..S in every channel, the real part of S4D."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


def _step_bias(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "D"]:
    """Initial values whose softplus is log-uniform in [0.001, 0.1]."""
    low, high = math.log(0.001), math.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))
