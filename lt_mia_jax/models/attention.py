"""Grouped-query causal self-attention."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Int, Key
from lt_mia_jax.models.config import Attention
from lt_mia_jax.models.position import rotary_frequencies, rotate
from lt_mia_jax.models.projection import INIT_STD, Projection, affine, dropout

HIDDEN = -1e30
"""Added to scores of later tokens; finite, so that no gradient is NaN."""


@jax.custom_jvp
def softmax(scores: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """Exponentials over the last axis, divided by their sum.

    Its derivative is written in terms of the result, so that training keeps one array
    of T x T weights a layer rather than two.
    """
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    powers = jnp.exp(scores - largest)
    return powers / powers.sum(axis=-1, keepdims=True)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    weights = softmax(*primals)
    moved = weights * tangents[0]
    return weights, moved - weights * moved.sum(axis=-1, keepdims=True)


def causal_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T H K"]:
    """Softmax attention of each token over itself and all earlier tokens.

    Query head h reads key/value head `h // (H // G)`. Scores are scaled by K^-1/2 and
    normalised in float32. Padding on the right needs no mask: no earlier token sees it.

    Source: "Attention Is All You Need", arXiv 1706.03762, eq. 1; grouping as in
    "GQA", arXiv 2305.13245.
    """
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    # Heads before tokens, and an added rather than selected mask: on CPU the backward
    # pass is two to three times faster than with the axes in their given order.
    query = (query * size**-0.5).reshape(batch, length, groups, heads // groups, size)
    query = query.transpose(0, 2, 3, 1, 4)  # B G H/G T K
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # B G T K
    scores = jnp.einsum(
        "bgrtk,bgsk->bgrts", query, key, preferred_element_type=jnp.float32
    )
    seen = jnp.tril(jnp.ones((length, length), dtype=bool))
    scores = scores + jnp.where(seen, 0.0, HIDDEN)[None, None, None]
    weights = softmax(scores)
    if dropout_key is not None:
        weights = dropout(weights, dropout_rate, dropout_key)
    mixed = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(value.dtype), value)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


class SelfAttention(nn.Module):
    """Projections around `causal_attention`."""

    config: Attention
    residual_std: float
    dropout_rate: float
    train: bool
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "T"]
    ) -> Float[Array, "B T D"]:
        """Mix tokens; `positions` are their absolute positions."""
        config = self.config
        batch, length, width = x.shape
        sizes = (config.heads, config.kv_heads, config.kv_heads)
        parts = [
            Projection(
                features=n * config.head_dim,
                bias=config.qkv_bias,
                std=INIT_STD,
                param_dtype=self.param_dtype,
                name=name,
            )(width)
            for name, n in zip(("query", "key", "value"), sizes, strict=True)
        ]
        # One wide product instead of three narrow ones; the rotation of queries and
        # keys is then one operation too.
        kernel = jnp.concatenate([kernel for kernel, _ in parts], axis=-1)
        bias = None
        if config.qkv_bias:
            bias = jnp.concatenate([b for _, b in parts if b is not None])
        fused = affine(x, kernel, bias)
        fused = fused.reshape(batch, length, sum(sizes), config.head_dim)
        rotated = config.heads + config.kv_heads
        query_key, value = fused[:, :, :rotated], fused[:, :, rotated:]
        if config.position is not None:
            frequencies = rotary_frequencies(config.position, config.rotary_dim)
            query_key = rotate(query_key, positions, frequencies)
        active = self.train and self.dropout_rate > 0
        mixed = causal_attention(
            query_key[:, :, : config.heads],
            query_key[:, :, config.heads :],
            value,
            dropout_rate=self.dropout_rate,
            dropout_key=self.make_rng("dropout") if active else None,
        )
        kernel, bias = Projection(
            features=width,
            bias=config.out_bias,
            std=self.residual_std,
            param_dtype=self.param_dtype,
            name="output",
        )(config.heads * config.head_dim)
        return affine(mixed.reshape(batch, length, -1), kernel, bias)


def residual_std(layers: int) -> float:
    """Initial deviation of projections that write to the residual stream.

    Source: "Language Models are Unsupervised Multitask Learners" (GPT-2), section
    2.3: scaled by 1/sqrt(N) for N residual additions, two a layer.
    """
    return INIT_STD / math.sqrt(2 * layers)
