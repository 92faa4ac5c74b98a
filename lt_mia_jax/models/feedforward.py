"""Plain and gated multi-layer perceptrons."""

from functools import partial
from typing import assert_never

import flax.linen as nn
import jax

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.models.config import Activation, Mlp
from lt_mia_jax.models.execution import CallConfig, recomputed
from lt_mia_jax.models.projection import projected


def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """Apply the named activation elementwise, in the dtype of `x`.

    Source: GELU and its tanh form, arXiv 1606.08415, section 2; SiLU, section 4.
    """
    match activation:
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
        case _:
            assert_never(activation)


class MlpLayer(nn.Module):
    """`down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` when gated."""

    config: Mlp
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Transform each token independently."""
        config, context = self.config, self.context
        activation = recomputed(partial(activate, activation=config.activation))
        middle = projected(x, config.width, config.bias, context, "up")
        if config.gated:
            gate = projected(x, config.width, config.bias, context, "gate")
            middle = activation(gate) * middle
        else:
            middle = activation(middle)
        return projected(
            middle, x.shape[-1], config.bias, context, "down", to_residual=True
        )
