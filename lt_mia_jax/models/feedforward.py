"""Plain and gated multi-layer perceptrons."""

from functools import partial
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.models.config import Activation, Mlp
from lt_mia_jax.models.execution import recomputed
from lt_mia_jax.models.projection import INIT_STD, Projection, affine


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
    residual_std: float
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Transform each token alone."""
        config = self.config
        width = x.shape[-1]

        def projection(name: str, features: int, std: float) -> Projection:
            return Projection(
                features=features,
                bias=config.bias,
                std=std,
                param_dtype=self.param_dtype,
                name=name,
            )

        activation = recomputed(partial(activate, activation=config.activation))
        up = affine(x, *projection("up", config.width, INIT_STD)(width))
        if config.gated:
            gate = affine(x, *projection("gate", config.width, INIT_STD)(width))
            middle = activation(gate) * up
        else:
            middle = activation(up)
        down = projection("down", width, self.residual_std)
        return affine(middle, *down(config.width))
