"""How a model is evaluated: settings that change the result by rounding only."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Int
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.mixers.recurrence import Form
from lt_mia_jax.sharding import traced_for_cpu

DType = Literal["float32", "bfloat16"]

INIT_STD = 0.02
"""Standard deviation of a weight matrix at initialization."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Dtypes and memory policy of one run."""

    param_dtype: DType = "float32"
    """Dtype of parameters. Decays and steps of recurrences are always float32, because
    bfloat16 would change how long a model remembers."""
    compute_dtype: DType | None = None
    """Dtype of activations; None is bfloat16 on GPU and TPU, float32 on CPU. Norms,
    softmax, recurrences and logits are always float32. float32 also disables
    reduced-precision multiplication (TF32, or bfloat16 passes on TPU)."""
    remat: bool = False
    """Recompute each period in the backward pass: about 30 % more time, activations of
    one period in memory."""
    unroll: int = 1
    """Periods per step of the layer scan; more compile longer and may run faster."""
    recurrence: Form = "chunked"
    """Algorithm of recurrent mixers; see `models.mixers.recurrence`."""
    forward_mode: bool = False
    """Support `jax.jvp` and `jax.jacfwd`. Gradients of kernels are then slower on CPU,
    and "chunked" recurrences, which have a custom gradient, become "associative".
    `jax.grad` and `jax.jvp` of `jax.grad` do not need it."""

    def resolve_compute_dtype(self) -> jnp.dtype:
        """The dtype of activations on the target platform."""
        if self.compute_dtype is not None:
            return jnp.dtype(self.compute_dtype)
        return jnp.dtype(jnp.float32 if traced_for_cpu() else jnp.bfloat16)


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """Settings shared by all modules of one call."""

    model: ModelConfig
    execution: ExecutionConfig
    train: bool = False
    """Whether dropout is active."""
    adapter_dropout: float = 0.0
    """Dropout rate on the inputs of adapters during training."""
    capture: tuple[int, ...] = ()
    """Layers whose output stream is returned; 0 is the embedding."""
    memory: int = 0
    """Tokens of a text for which a state is kept from call to call; 0 keeps none."""
    intervention: Callable[[Any, Any], Any] | None = None
    """Edits the residual stream: (stream, number of layers passed) to stream."""

    @property
    def param_dtype(self) -> jnp.dtype:
        """Dtype of parameters."""
        return jnp.dtype(self.execution.param_dtype)

    @property
    def recurrence(self) -> Form:
        """The algorithm of recurrences, given `forward_mode`."""
        form = self.execution.recurrence
        if self.execution.forward_mode and form == "chunked":
            return "associative"
        return form

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of projections that write to the residual stream.

        Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), section
        2.3: scaled by 1/sqrt(N) for N residual additions, two per layer.
        """
        return INIT_STD / math.sqrt(2 * self.model.layers)


class Place(NamedTuple):
    """What a block knows about its input beside the residual stream."""

    positions: Int[Array, "T"] | Int[Array, "B T"]
    """Absolute positions of the tokens; of each text, when a state is kept."""
    layer: Int[Array, ""]
    """Number of the layer, from 1 on."""
    real: Bool[Array, "B T"] | None = None
    """Which tokens are no padding, where attention must know."""


class Chunk(NamedTuple):
    """The next tokens of texts whose state is kept; padding is on the right."""

    positions: Int[Array, "B T"]
    """Absolute positions of the tokens."""
    real: Bool[Array, "B T"]
    """Which are no padding."""
    last: Int[Array, "B"]
    """Index of the token whose logits are wanted."""


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its intermediate values recomputed in the backward pass.

    For elementwise functions of one wide input: the arithmetic costs less than storing
    and reading every intermediate value of every layer.
    """
    # If XLA merges the two computations, the result stays right: no barrier needed.
    return jax.checkpoint(function, prevent_cse=False)
