"""How a model is evaluated; up to rounding, none of this changes the function."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Int
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
    """Dtype of parameters, but for the few that are float32 always: decays and steps
    of recurrences, where bfloat16 would change how long a model remembers."""
    compute_dtype: DType | None = None
    """Dtype of activations; None is bfloat16 on GPU and TPU, float32 on CPU. Norms,
    softmax, recurrences and logits are float32 always; float32 here also forbids
    reduced-precision multiplication (TF32, or bfloat16 passes on TPU)."""
    remat: bool = False
    """Recompute each period in the backward pass: memory of one for ~30 % time."""
    unroll: int = 1
    """Periods per step of the layer scan; more compiles longer and may run faster."""
    recurrence: Form = "chunked"
    """How recurrent mixers walk along the tokens; see `models.recurrence`."""
    forward_mode: bool = False
    """Let `jax.jvp` and `jax.jacfwd` through. Gradients of kernels are then slower on
    CPU, and "chunked" recurrences, whose gradient is written by hand, become
    "associative". Reverse mode, and `jax.jvp` of `jax.grad`, never need it."""

    def resolve_compute_dtype(self) -> jnp.dtype:
        """The dtype of activations on the platform that is compiled for."""
        if self.compute_dtype is not None:
            return jnp.dtype(self.compute_dtype)
        return jnp.dtype(jnp.float32 if traced_for_cpu() else jnp.bfloat16)


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """What all modules of one call share."""

    model: ModelConfig
    execution: ExecutionConfig
    train: bool = False
    """Whether dropout is active."""
    adapter_dropout: float = 0.0
    """Rate on the inputs of adapters, in training."""
    capture: tuple[int, ...] = ()
    """Layers after which the residual stream is kept; 0 is the embedding."""
    intervention: Callable[[Any, Any], Any] | None = None
    """Edits the residual stream: (stream, number of layers passed) to stream."""

    @property
    def param_dtype(self) -> jnp.dtype:
        """Dtype of parameters."""
        return jnp.dtype(self.execution.param_dtype)

    @property
    def recurrence(self) -> Form:
        """The form of recurrences that the settings allow."""
        form = self.execution.recurrence
        if self.execution.forward_mode and form == "chunked":
            return "associative"
        return form

    @property
    def residual_std(self) -> float:
        """Initial deviation of projections that write to the residual stream.

        Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), section
        2.3: scaled by 1/sqrt(N) for N residual additions, two a layer.
        """
        return INIT_STD / math.sqrt(2 * self.model.layers)


class Place(NamedTuple):
    """What a block knows about its input beside the residual stream."""

    positions: Int[Array, "T"]
    """Absolute positions of the tokens."""
    layer: Int[Array, ""]
    """Number of the layer, from 1 on."""


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose intermediate values the backward pass computes again.

    For elementwise functions of one wide input: the arithmetic costs less than the
    memory traffic of keeping every step of it for every layer.
    """
    # Merging the two computations is always right, merely a waste of this wrapper.
    return jax.checkpoint(function, prevent_cse=False)
