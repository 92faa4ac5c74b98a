"""What a training step carries from one call to the next."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Int


class TrainState(NamedTuple):
    """Everything that a step changes; a pytree, donated to the step."""

    step: Int[Array, ""]
    """Updates done so far, int32."""
    params: Any
    """Trained parameters (or adapters)."""
    opt_state: Any
    """State of the optimizer, which mirrors the parameters."""


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
