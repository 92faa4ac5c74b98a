"""How a model is evaluated; up to rounding, none of this changes the function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Dtypes and memory policy of one run."""

    param_dtype: DType = "float32"
    """Dtype of parameters that `init` makes."""
    compute_dtype: DType | None = None
    """Dtype of activations; None is bfloat16 on GPU and TPU, float32 on CPU. Norms,
    softmax and logits are float32 always; float32 here also forbids reduced-precision
    multiplication (TF32, or bfloat16 passes on TPU)."""
    remat: bool = False
    """Recompute each period in the backward pass: memory of one for ~30 % time."""
    unroll: int = 1
    """Periods per step of the layer scan; more compiles longer and may run faster."""

    def resolve_compute_dtype(self) -> jnp.dtype:
        """The dtype of activations on the default backend."""
        if self.compute_dtype is not None:
            return jnp.dtype(self.compute_dtype)
        on_cpu = jax.default_backend() == "cpu"
        return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose intermediate values the backward pass computes again.

    For elementwise functions of one wide input: the arithmetic costs less than the
    memory traffic of keeping every step of it for every layer.
    """
    # Merging the two computations is always right, merely a waste of this wrapper.
    return jax.checkpoint(function, prevent_cse=False)
