"""RWKV-4: the time mix (linear attention) and the channel mix (feed-forward)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.models.config import RwkvChannelMix, RwkvTimeMix
from lt_mia_jax.models.execution import CallConfig, Place
from lt_mia_jax.models.mixers.recurrence import wkv
from lt_mia_jax.models.mixers.stateful import continue_wkv, preceded
from lt_mia_jax.models.projection import projected


class TimeMix(nn.Module):
    """A weighted average of past values, gated by a receptance.

    Source: "RWKV", arXiv 2305.13048, eq. 11-14.
    """

    config: RwkvTimeMix
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Mix tokens; the layer only shapes the initial parameters."""
        context, inner = self.context, self.config.width
        width, depth = x.shape[-1], context.model.layers
        before = preceded(self, x, 1, place)[:, :-1]
        done = (place.layer - 1) / max(depth - 1, 1)
        ahead = 1.0 - (place.layer - 1) / depth

        def decay(key: Key[Array, ""], shape: tuple[int]) -> Float[Array, "D"]:
            place = jnp.arange(inner) / max(inner - 1, 1)
            return -5.0 + 8.0 * place ** (0.7 + 1.3 * done)

        def bonus(key: Key[Array, ""], shape: tuple[int]) -> Float[Array, "D"]:
            zigzag = (jnp.arange(inner) + 1) % 3 - 1
            return jnp.log(0.3) + 0.5 * zigzag.astype(jnp.float32)

        def part(name: str, exponent: Array, extra: Array) -> Array:
            mix = _mixed(self, f"mix_{name}", x, before, exponent, extra)
            return projected(mix, inner, False, context, name)

        none = jnp.zeros(())
        key = part("key", ahead, none)
        value = part("value", ahead, 0.3 * done)
        receptance = part("receptance", 0.5 * ahead, none)
        rates = (
            self.param("decay", decay, (inner,)),
            self.param("bonus", bonus, (inner,)),
        )
        if context.memory:
            mixed = continue_wkv(self, *rates, key, value, place)
        else:
            mixed = wkv(*rates, key, value, form=context.recurrence)
        y = jax.nn.sigmoid(receptance) * mixed
        return projected(y, width, False, context, "output", to_residual=True)


class ChannelMix(nn.Module):
    """A gated squared-ReLU perceptron of each token and its predecessor.

    Source: "RWKV", arXiv 2305.13048, eq. 16-18.
    """

    config: RwkvChannelMix
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Transform each token; the layer only shapes the initial parameters."""
        context, width = self.context, x.shape[-1]
        before = preceded(self, x, 1, place)[:, :-1]
        ahead, none = 1.0 - (place.layer - 1) / context.model.layers, jnp.zeros(())
        key_input = _mixed(self, "mix_key", x, before, ahead, none)
        gate_input = _mixed(self, "mix_receptance", x, before, ahead, none)
        key = projected(key_input, self.config.width, False, context, "key")
        middle = jnp.square(jax.nn.relu(key))
        gate = projected(gate_input, width, False, context, "receptance")
        fed = projected(middle, width, False, context, "value", to_residual=True)
        return jax.nn.sigmoid(gate) * fed


def _mixed(
    module: TimeMix | ChannelMix,
    name: str,
    x: Float[Array, "B T D"],
    before: Float[Array, "B T D"],
    exponent: Float[Array, ""],
    extra: Float[Array, ""],
) -> Float[Array, "B T D"]:
    """`before + mix (x - before)` with a trained `mix` per channel."""
    width = x.shape[-1]

    def initial(key: Key[Array, ""], shape: tuple[int]) -> Float[Array, "D"]:
        mix = (jnp.arange(width) / width) ** exponent + extra
        return mix.astype(module.context.param_dtype)

    mix = module.param(name, initial, (width,)).astype(x.dtype)[None, None, :]
    return x * mix + before * (1 - mix)
