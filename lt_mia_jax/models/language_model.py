"""The interface through which the rest of the package uses models."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.decoder import Decoder
from lt_mia_jax.models.execution import CallConfig, Chunk, ExecutionConfig
from lt_mia_jax.models.mixers.stateful import STATE
from lt_mia_jax.trees import flatten, unflatten

DEFAULT_EXECUTION = ExecutionConfig()

Adapters = Mapping[str, tuple[Array, Array]]
"""Low-rank pairs by path of the kernel to which they are added."""

Intervention = Callable[[Array, Array], Array]
"""(stream "B T D", number of layers passed) to the edited stream."""


class DecodingState(NamedTuple):
    """What a model remembers of the texts that it has read."""

    layers: Any
    """Keys and values, convolution inputs, and recurrent states of all layers."""
    lengths: Int[Array, "B"]
    """Tokens of each text so far."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model as a value: two pure functions and their settings.

    It is frozen and hashable, so it can be a static argument of `jax.jit` or closed
    over; equal models share one compiled program.

    Example:
      >>> import jax
      >>> from lt_mia_jax import LanguageModel
      >>> from lt_mia_jax.models import gpt2_like
      >>> model = LanguageModel(gpt2_like(64, width=16, layers=1, heads=2, context=8))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jax.numpy.array([[3, 1, 4]])).shape
      (1, 3, 64)
    """

    config: ModelConfig
    """The function that the model computes."""
    execution: ExecutionConfig = DEFAULT_EXECUTION
    """How it is evaluated."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters: nested dicts, layers stacked on a leading axis.

        Weights are normal with standard deviation 0.02, divided by sqrt(2 * layers)
        where they write to the residual stream; biases are zero and norm scales one.
        Decays, steps, gates and mixing factors of recurrences start as in their papers.

        Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), 2.3.
        """
        return jax.jit(self._init)(key)

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`, without allocating memory."""
        # A copy, so that callers cannot edit the cached tree.
        return jax.tree.map(lambda leaf: leaf, _shapes(self))

    @overload
    def apply(
        self,
        params: Params,
        input_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        *,
        dropout_key: Key[Array, ""] | None = None,
        adapters: Adapters | None = None,
        adapter_dropout: float = 0.0,
        intervention: Intervention | None = None,
        capture: None = None,
    ) -> Float[Array, "B T V"]: ...

    @overload
    def apply(
        self,
        params: Params,
        input_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        *,
        dropout_key: Key[Array, ""] | None = None,
        adapters: Adapters | None = None,
        adapter_dropout: float = 0.0,
        intervention: Intervention | None = None,
        capture: Sequence[int],
    ) -> tuple[Float[Array, "B T V"], dict[int, Float[Array, "B T D"]]]: ...

    def apply(
        self,
        params: Params,
        input_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        *,
        dropout_key: Key[Array, ""] | None = None,
        adapters: Adapters | None = None,
        adapter_dropout: float = 0.0,
        intervention: Intervention | None = None,
        capture: Sequence[int] | None = None,
    ) -> (
        Float[Array, "B T V"]
        | tuple[Float[Array, "B T V"], dict[int, Float[Array, "B T D"]]]
    ):
        """Float32 logits before the softmax; position t predicts token t + 1.

        Padding must be on the right: logits at real tokens never depend on it, those
        at padding are meaningless. Ids outside [0, V) are not checked under jit.

        A layer number counts the layers that the residual stream has passed: 0 is the
        input of the first layer, `config.layers` the input of the final norm.

        Args:
          params: as returned by `init` or `checkpoints.load_pretrained`.
          input_ids: token ids.
          dropout_key: enables the dropout of `config.dropout` and of the adapters.
          adapters: pairs (A, B) by path of a kernel, to which they add `x A B`; see
            `finetune.lora`.
          adapter_dropout: dropout rate on the inputs of the adapters.
          intervention: a pure function (stream "B T D", layer number) to the stream
            that replaces it, called at 0 and after every layer. The number is traced:
            use `jnp.where` or indexing, not `if`.
          capture: layer numbers whose streams (after the intervention) are returned.

        Returns:
          The logits; with `capture` also the streams "B T D" by layer number, in the
          compute dtype.

        Raises:
          InputError: more tokens than learned positions, a layer that does not exist,
            or adapters that fit no kernel (at trace time).
        """
        captured = self._check_layers(capture)
        context = CallConfig(
            model=self.config,
            execution=self.execution,
            train=dropout_key is not None,
            adapter_dropout=adapter_dropout,
            capture=captured,
            intervention=intervention,
        )
        variables = self._variables(params, adapters)
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        with self._matmul_precision():
            logits, taps = cast(
                tuple[Array, Array | None],
                Decoder(context).apply(variables, jnp.asarray(input_ids), rngs=rngs),
            )
        if capture is None:
            return logits
        return logits, {} if taps is None else dict(zip(captured, taps, strict=True))

    def advance(
        self,
        params: Params,
        input_ids: Int[Array, "B T"],
        real: Bool[Array, "B T"],
        state: DecodingState | None = None,
        *,
        memory: int,
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "B V"], DecodingState]:
        """Read the next tokens of each text, given what was read before.

        What `apply` gives for the whole texts, to rounding, at the cost of the new
        tokens. A text without real tokens keeps its state, and its logits mean nothing.

        Args:
          params: see `apply`.
          input_ids: the next tokens, padded on the right.
          real: which are no padding.
          state: that of the last call with the same `memory`; None begins the texts.
          memory: maximum number of tokens of a text, for which there is room.
          adapters: see `apply`.

        Returns:
          Float32 logits after the last real token of each text, and the new state.

        Raises:
          InputError: the model has fewer learned positions than `memory`.
        """
        context = CallConfig(model=self.config, execution=self.execution, memory=memory)
        variables = self._variables(params, adapters)
        lengths = jnp.zeros(len(input_ids), jnp.int32)
        if state is not None:
            variables[STATE], lengths = state
        count = real.sum(axis=1, dtype=jnp.int32)
        positions = lengths[:, None] + jnp.arange(input_ids.shape[1])[None, :]
        chunk = Chunk(positions, real, jnp.maximum(count - 1, 0))
        with self._matmul_precision():
            (logits, _), changed = Decoder(context).apply(
                variables, input_ids, chunk, mutable=[STATE]
            )
        return logits[:, 0], DecodingState(changed[STATE], lengths + count)

    def _variables(self, params: Params, adapters: Adapters | None) -> dict[str, Any]:
        # Parameters may be NumPy arrays, such as memory-mapped ones.
        variables: dict[str, Any] = {"params": jax.tree.map(jnp.asarray, params)}
        if adapters:
            self._check_adapters(adapters)
            variables["adapters"] = unflatten(adapters)
        return variables

    def _check_layers(self, capture: Sequence[int] | None) -> tuple[int, ...]:
        captured = tuple(dict.fromkeys(capture or ()))
        wrong = [n for n in captured if not 0 <= n <= self.config.layers]
        if wrong:
            raise InputError(
                f"capture: there is no layer {wrong}; expected numbers from 0 (the "
                f"embedding) to {self.config.layers} (after the last layer)"
            )
        return captured

    def _check_adapters(self, adapters: Adapters) -> None:
        shapes = flatten(self.shapes())
        wrong = []
        for name, (down, up) in adapters.items():
            if name not in shapes or not name.endswith("/kernel"):
                # Only projections read adapters.
                wrong.append(f"{name} is no kernel of this model")
                continue
            *stacked, inputs, outputs = shapes[name].shape
            fits = down.shape[:-1] == (*stacked, inputs)
            fits &= up.shape == (*stacked, down.shape[-1], outputs)
            if not fits:
                wrong.append(
                    f"{name} is {list(shapes[name].shape)}, its adapter "
                    f"{list(down.shape)} x {list(up.shape)}"
                )
        if wrong:
            raise InputError(f"adapters do not fit the model: {capped(wrong, '; ')}")

    def _init(self, key: Key[Array, ""]) -> Params:
        decoder = Decoder(CallConfig(model=self.config, execution=self.execution))
        variables = decoder.init({"params": key}, jnp.zeros((1, 1), jnp.int32))
        return cast(Params, variables["params"])

    def _matmul_precision(self) -> contextlib.AbstractContextManager:
        # By default accelerators round float32 products to TF32 or bfloat16.
        if self.execution.resolve_compute_dtype() == jnp.float32:
            return jax.default_matmul_precision("highest")
        return contextlib.nullcontext()


@lru_cache(maxsize=64)
def _shapes(model: LanguageModel) -> Params:
    return jax.eval_shape(model._init, jax.random.key(0))
