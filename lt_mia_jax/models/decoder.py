"""Blocks, the scanned period of blocks, and the decoder from tokens to logits."""

from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import (
    Attention,
    BlockConfig,
    Mamba,
    Mlp,
    NormPlace,
    Residual,
    RgLru,
    RwkvTimeMix,
    Tied,
)
from lt_mia_jax.models.execution import INIT_STD, CallConfig, Chunk, Place
from lt_mia_jax.models.feedforward import MlpLayer
from lt_mia_jax.models.mixers.attention import SelfAttention, is_causal
from lt_mia_jax.models.mixers.mamba import MambaMixer
from lt_mia_jax.models.mixers.rglru import RgLruMixer
from lt_mia_jax.models.mixers.rwkv import ChannelMix, TimeMix
from lt_mia_jax.models.mixers.stateful import STATE
from lt_mia_jax.models.norm import Normalize
from lt_mia_jax.models.projection import (
    Projection,
    adapted,
    dropout,
    product,
    projected,
)


class Block(nn.Module):
    """One layer: mixer and feed-forward with their norms, added to the stream."""

    block: BlockConfig
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """The stream after this layer."""
        block, context = self.block, self.context
        normed = self._enter(x, "mixer")
        mixed = self._add(x, self._mixer()(normed, place), "mixer")
        if block.feed_forward is None:
            return mixed
        match block.residual:
            case Residual.SEQUENTIAL:
                normed = self._enter(mixed, "feed_forward")
            case Residual.PARALLEL:
                normed = self._enter(x, "feed_forward")
            case Residual.PARALLEL_SHARED_NORM:
                pass
            case _:
                assert_never(block.residual)
        if isinstance(block.feed_forward, Mlp):
            fed = MlpLayer(block.feed_forward, context, name="feed_forward")(normed)
        else:
            mix = ChannelMix(block.feed_forward, context, name="feed_forward")
            fed = mix(normed, place)
        return self._add(mixed, fed, "feed_forward")

    def _mixer(self) -> Callable[[Array, Place], Array]:
        match self.block.mixer:
            case Attention() as config:
                return SelfAttention(config, self.context, name="mixer")
            case Mamba() as config:
                return MambaMixer(config, self.context, name="mixer")
            case RwkvTimeMix() as config:
                return TimeMix(config, self.context, name="mixer")
            case RgLru() as config:
                return RgLruMixer(config, self.context, name="mixer")
            case _:
                assert_never(self.block.mixer)

    def _enter(self, x: Float[Array, "B T D"], half: str) -> Float[Array, "B T D"]:
        """What a half of the block reads."""
        if self.block.norm_place in (NormPlace.INPUT, NormPlace.BOTH):
            return self._normalize(x, f"{half}_norm")
        return x

    def _add(
        self, x: Float[Array, "B T D"], y: Float[Array, "B T D"], half: str
    ) -> Float[Array, "B T D"]:
        """The stream after a half that gave `y`."""
        match self.block.norm_place:
            case NormPlace.INPUT:
                return x + self._drop(y)
            case NormPlace.OUTPUT | NormPlace.BOTH:
                return x + self._drop(self._normalize(y, f"{half}_output_norm"))
            case NormPlace.SUM:
                return self._normalize(x + self._drop(y), f"{half}_norm")
            case _:
                assert_never(self.block.norm_place)

    def _normalize(self, x: Float[Array, "B T D"], name: str) -> Float[Array, "B T D"]:
        return Normalize(self.block.norm, self.context.param_dtype, name=name)(x)

    def _drop(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        rate = self.context.model.dropout.residual
        if not self.context.train or rate == 0:
            return y
        return dropout(y, rate, self.make_rng("dropout"))


class Stream(NamedTuple):
    """State passed from layer to layer."""

    x: Float[Array, "B T D"]
    """The residual stream."""
    taps: Float[Array, "N B T D"] | None
    """Captured copies of it, and one extra row that all other layers overwrite."""

    def passed(
        self, x: Float[Array, "B T D"], layer: Any, row: Any, context: CallConfig
    ) -> "Stream":
        """The stream after a layer: intervention applied, copy kept if requested."""
        if context.intervention is not None:
            x = context.intervention(x, jnp.asarray(layer)).astype(x.dtype)
        if self.taps is None:
            return Stream(x, None)
        return Stream(x, jax.lax.dynamic_update_index_in_dim(self.taps, x, row, 0))


class Period(nn.Module):
    """One repetition of the block pattern: the body of the scan over layers."""

    context: CallConfig

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        place: Place,
        layers: Int[Array, "slots"],
        rows: Int[Array, "slots"],
    ) -> tuple[Stream, None]:
        """The stream after all blocks; the scan stacks nothing."""
        for slot, block in enumerate(self.context.model.pattern):
            module = Block(block, self.context, name=f"slot_{slot}")
            x = module(stream.x, place._replace(layer=layers[slot]))
            stream = stream.passed(x, layers[slot], rows[slot], self.context)
        return stream, None


class Decoder(nn.Module):
    """Token ids to logits."""

    context: CallConfig

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "B T"], chunk: Chunk | None = None
    ) -> tuple[Float[Array, "B P V"], Float[Array, "N B T D"] | None]:
        """Float32 logits, and the streams after the layers of `context.capture`.

        Of a `chunk`, which goes on from the state, only the logits of one token a text.
        """
        context, model = self.context, self.context.model
        dtype = context.execution.resolve_compute_dtype()
        table = Embed(context, name="embedding")()
        place = Place(jnp.arange(input_ids.shape[1]), jnp.zeros((), jnp.int32))
        if not is_causal(model):
            place = place._replace(real=input_ids >= 0)
        if chunk is not None:
            place = place._replace(positions=chunk.positions, real=chunk.real)
        x = self._embed(table, input_ids, place.positions, dtype)
        stream = self._run_layers(x, place)
        x = stream.x
        if chunk is not None:
            x = jnp.take_along_axis(x, chunk.last[:, None, None], axis=1)
        flat = self._leave(x).reshape(-1, model.token_width)
        bias = adapter = None
        if isinstance(model.head, Tied):
            kernel = table["tokens"].T
        else:
            head = Projection(model.vocab_size, model.head.bias, context, name="head")
            kernel, bias, adapter, _ = head(model.token_width)
        kernel = kernel.astype(dtype)
        if dtype == jnp.float32:
            logits = product(flat, kernel, context.execution.forward_mode)
        else:
            logits = jnp.matmul(flat, kernel, preferred_element_type=jnp.float32)
        if adapter is not None:
            logits = logits + adapted(flat, adapter).astype(jnp.float32)
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)[None, :]
        if model.logit_softcap is not None:
            logits = jnp.tanh(logits / model.logit_softcap) * model.logit_softcap
        logits = logits.reshape(*x.shape[:2], model.vocab_size)
        return logits, None if stream.taps is None else stream.taps[:-1]

    def _embed(
        self,
        table: dict[str, Array],
        input_ids: Int[Array, "B T"],
        places: Int[Array, "T"] | Int[Array, "B T"],
        dtype: jnp.dtype,
    ) -> Float[Array, "B T D"]:
        model = self.context.model
        length = self.context.memory or input_ids.shape[1]
        x = table["tokens"].astype(dtype)[input_ids]
        if model.embedding.scale is not None:
            x = x * jnp.asarray(model.embedding.scale, dtype)
        if model.embedding.width is not None:
            x = projected(x, model.width, False, self.context, "embedding_projection")
        positions = model.embedding.positions
        if positions is not None:
            if length > positions.size:
                raise InputError(
                    f"texts of {length} tokens, but the position table has "
                    f"{positions.size} rows; cut them to {positions.size} tokens "
                    f"(--length {positions.size})"
                )
            if places.ndim == 1:  # they begin at 0
                rows = table["positions"][positions.offset :][None, :length]
            else:
                rows = table["positions"][places + positions.offset]
            x = x + rows.astype(dtype)
        norm = model.embedding.norm
        if norm is not None:
            x = Normalize(norm, self.context.param_dtype, name="embedding_norm")(x)
        rate = model.dropout.embedding
        if self.context.train and rate > 0:
            x = dropout(x, rate, self.make_rng("dropout"))
        return x

    def _leave(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """What the head reads."""
        model, context = self.context.model, self.context
        if model.final_norm is not None:
            norm = Normalize(model.final_norm, context.param_dtype, name="final_norm")
            x = norm(x)
        if model.embedding.width is not None:
            x = projected(x, model.token_width, False, context, "head_projection")
        return x

    def _run_layers(self, x: Float[Array, "B T D"], place: Place) -> Stream:
        context, model = self.context, self.context.model
        kept = len(context.capture)
        row_of = np.full(model.layers + 1, kept, np.int32)
        row_of[list(context.capture)] = np.arange(kept)
        taps = jnp.zeros((kept + 1, *x.shape), x.dtype) if kept else None
        stream = Stream(x, taps).passed(x, 0, row_of[0], context)
        body, block = Period, Block
        if context.execution.remat:
            # The scan already prevents common-subexpression elimination.
            body = nn.remat(Period, prevent_cse=False)
            block = nn.remat(Block)
        if model.periods:
            scanned = nn.scan(
                body,
                variable_axes={"params": 0, "adapters": 0, STATE: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, 0),  # type: ignore[reportArgumentType]
                length=model.periods,
                unroll=min(context.execution.unroll, model.periods),
            )
            shape = (model.periods, len(model.pattern))
            whole = model.layers - len(model.tail)
            layers = jnp.arange(1, whole + 1).reshape(shape)
            rows = jnp.asarray(row_of[1 : whole + 1]).reshape(shape)
            periods = scanned(context, name="periods")
            stream, _ = periods(stream, place, layers, rows)
        for index, config in enumerate(model.tail):
            layer = model.layers - len(model.tail) + index + 1
            module = block(config, context, name=f"tail_{index}")
            x = module(stream.x, place._replace(layer=jnp.asarray(layer)))
            stream = stream.passed(x, layer, row_of[layer], context)
        return stream


class Embed(nn.Module):
    """The token table and, if the model has one, the position table."""

    context: CallConfig

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The tables by name; a tied head uses the token table too."""
        model, dtype = self.context.model, self.context.param_dtype
        normal = nn.initializers.normal(INIT_STD)
        shape = (model.vocab_size, model.token_width)
        tables = {"tokens": self.param("tokens", normal, shape, dtype)}
        positions = model.embedding.positions
        if positions is not None:
            shape = (positions.size + positions.offset, model.width)
            tables["positions"] = self.param("positions", normal, shape, dtype)
        return tables
