"""The only door to models for the rest of the package."""

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Key, Params
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.decoder import Decoder
from lt_mia_jax.models.execution import ExecutionConfig

DEFAULT_EXECUTION = ExecutionConfig()


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model as a value: two pure functions and their settings.

    Frozen and hashable, so it may be closed over or passed as a static argument to
    `jax.jit`; equal models share one compiled program.
    """

    config: ModelConfig
    """What the model is."""
    execution: ExecutionConfig = DEFAULT_EXECUTION
    """How it is evaluated."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters: nested dicts, layers stacked on a leading axis.

        Weights are normal with deviation 0.02, divided by sqrt(2 * layers) where they
        write to the residual stream; biases are zero and norm scales one.

        Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), 2.3.
        """
        return jax.jit(self._init)(key)

    def shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` returns, using no memory."""
        # A fresh tree each time: the cached one must not be edited by a caller.
        return jax.tree.map(lambda leaf: leaf, _shapes(self))

    def apply(
        self,
        params: Params,
        input_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits; position t scores token t + 1. Not soft-maxed.

        Padding must be on the right: logits at real tokens never depend on it, those
        at padding are meaningless. Ids outside [0, V) are not checked under jit.

        Args:
          params: as `init` or `checkpoints.load_pretrained` returns them.
          input_ids: token ids.
          dropout_key: switches on the dropout of `config.dropout`; None evaluates.

        Raises:
          InputError: more tokens than learned positions (at trace time).
        """
        decoder = Decoder(self.config, self.execution, train=dropout_key is not None)
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        with self._matmul_precision():
            # Parameters may come as NumPy arrays, such as memory-mapped ones.
            variables = {"params": jax.tree.map(jnp.asarray, params)}
            logits = decoder.apply(variables, jnp.asarray(input_ids), rngs=rngs)
        return cast(Array, logits)

    def _init(self, key: Key[Array, ""]) -> Params:
        decoder = Decoder(self.config, self.execution, train=False)
        variables = decoder.init({"params": key}, jnp.zeros((1, 1), jnp.int32))
        return cast(Params, variables["params"])

    def _matmul_precision(self) -> contextlib.AbstractContextManager:
        # On accelerators a float32 product is rounded to TF32 or bfloat16 unless told
        # otherwise; whoever asked for float32 wants float32.
        if self.execution.resolve_compute_dtype() == jnp.float32:
            return jax.default_matmul_precision("highest")
        return contextlib.nullcontext()


@lru_cache(maxsize=64)
def _shapes(model: LanguageModel) -> Params:
    return jax.eval_shape(model._init, jax.random.key(0))
