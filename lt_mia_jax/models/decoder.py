"""Blocks, the scanned period of blocks, and the decoder from tokens to logits."""

from typing import assert_never

import flax.linen as nn
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.attention import SelfAttention, residual_std
from lt_mia_jax.models.config import BlockConfig, ModelConfig, Residual, Tied, Untied
from lt_mia_jax.models.execution import ExecutionConfig
from lt_mia_jax.models.feedforward import MlpLayer
from lt_mia_jax.models.norm import Normalise
from lt_mia_jax.models.projection import INIT_STD, Projection, dropout


class Block(nn.Module):
    """One layer: norm and mixer, norm and feed-forward, added to the stream."""

    model: ModelConfig
    block: BlockConfig
    execution: ExecutionConfig
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "T"]
    ) -> Float[Array, "B T D"]:
        """The stream after this layer."""
        block, rates = self.block, self.model.dropout
        dtype = jnp.dtype(self.execution.param_dtype)
        std = residual_std(self.model.layers)
        mixer = SelfAttention(
            config=block.mixer,
            residual_std=std,
            dropout_rate=rates.attention,
            train=self.train,
            param_dtype=dtype,
            name="mixer",
        )
        feed_forward = MlpLayer(
            config=block.feed_forward,
            residual_std=std,
            param_dtype=dtype,
            name="feed_forward",
        )
        mixer_norm = Normalise(block.norm, dtype, name="mixer_norm")
        feed_forward_norm = Normalise(block.norm, dtype, name="feed_forward_norm")

        def drop(y: Array) -> Array:
            if not self.train or rates.residual == 0:
                return y
            return dropout(y, rates.residual, self.make_rng("dropout"))

        mixed = drop(mixer(mixer_norm(x), positions))
        match block.residual:
            case Residual.SEQUENTIAL:
                x = x + mixed
                return x + drop(feed_forward(feed_forward_norm(x)))
            case Residual.PARALLEL:
                return x + mixed + drop(feed_forward(feed_forward_norm(x)))
            case _:
                assert_never(block.residual)


class Period(nn.Module):
    """One repetition of the pattern: the body of the scan over layers."""

    model: ModelConfig
    execution: ExecutionConfig
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        """The stream after all slots, and nothing to stack."""
        for slot, block in enumerate(self.model.pattern):
            layer = Block(
                self.model, block, self.execution, self.train, name=f"slot_{slot}"
            )
            x = layer(x, positions)
        return x, None


class Decoder(nn.Module):
    """Token ids to logits."""

    model: ModelConfig
    execution: ExecutionConfig
    train: bool

    @nn.compact
    def __call__(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Float32 logits; position t scores token t + 1."""
        model, dtype = self.model, self.execution.resolve_compute_dtype()
        param_dtype = jnp.dtype(self.execution.param_dtype)
        length = input_ids.shape[1]
        table = Embed(model, param_dtype, name="embedding")()
        x = table["tokens"].astype(dtype)[input_ids]
        if model.embedding.positions is not None:
            if length > model.context:
                raise InputError(
                    f"texts of {length} tokens, but the position table has "
                    f"{model.context} rows; cut them to {model.context} tokens"
                )
            x = x + table["positions"][None, :length].astype(dtype)
        if self.train and model.dropout.embedding > 0:
            x = dropout(x, model.dropout.embedding, self.make_rng("dropout"))
        x = self._run_layers(x, jnp.arange(length))
        x = Normalise(model.final_norm, param_dtype, name="final_norm")(x)
        match model.head:
            case Tied():
                kernel = table["tokens"].T
            case Untied():
                kernel, _ = Projection(
                    features=model.vocab_size,
                    bias=False,
                    std=INIT_STD,
                    param_dtype=param_dtype,
                    name="head",
                )(model.width)
            case _:
                assert_never(model.head)
        logits = jnp.matmul(
            x.reshape(-1, model.width),
            kernel.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        return logits.reshape(*input_ids.shape, model.vocab_size)

    def _run_layers(
        self, x: Float[Array, "B T D"], positions: Int[Array, "T"]
    ) -> Float[Array, "B T D"]:
        model, execution = self.model, self.execution
        body, block = Period, Block
        if execution.remat:
            # The scan is already a barrier, so common-subexpression elimination
            # cannot undo the recomputation inside it.
            body = nn.remat(Period, prevent_cse=False)
            block = nn.remat(Block)
        if model.periods:
            scanned = nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast,),  # type: ignore[reportArgumentType]
                length=model.periods,
                unroll=min(execution.unroll, model.periods),
            )
            x, _ = scanned(model, execution, self.train, name="periods")(x, positions)
        for index, config in enumerate(model.tail):
            layer = block(model, config, execution, self.train, name=f"tail_{index}")
            x = layer(x, positions)
        return x


class Embed(nn.Module):
    """Token table and, where the model has one, the position table."""

    model: ModelConfig
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The tables by name; the token table may serve as the head too."""
        model = self.model
        normal = nn.initializers.normal(INIT_STD)
        shape = (model.vocab_size, model.width)
        tables = {"tokens": self.param("tokens", normal, shape, self.param_dtype)}
        if model.embedding.positions is not None:
            shape = (model.embedding.positions.size, model.width)
            tables["positions"] = self.param(
                "positions", normal, shape, self.param_dtype
            )
        return tables
