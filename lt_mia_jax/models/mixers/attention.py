"""Grouped-query self-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key
from lt_mia_jax.models.config import (
    Alibi,
    Attention,
    ModelConfig,
    QueryKeyNorm,
    Rotary,
)
from lt_mia_jax.models.execution import CallConfig, Place
from lt_mia_jax.models.mixers.stateful import remembered
from lt_mia_jax.models.norm import Normalize
from lt_mia_jax.models.position import alibi_bias, rotary_frequencies, rotate
from lt_mia_jax.models.projection import Projection, affine_together, dropout, projected

HIDDEN = -1e30
"""Added to scores of hidden tokens; finite, so that no gradient is NaN."""


def is_causal(config: ModelConfig) -> bool:
    """Whether logits never depend on later tokens: True of all but masked models."""
    return all(getattr(block.mixer, "causal", True) for block in config.pattern)


@jax.custom_jvp
def softmax(scores: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """Softmax over the last axis.

    Its derivative is a function of the result, so that training keeps one array of
    T x T weights per layer instead of two.
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
    key: Float[Array, "B M G K"],
    value: Float[Array, "B M G K"],
    *,
    positions: Int[Array, "B T"] | None = None,
    scale: float | Float[Array, ""] | None = None,
    softcap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "H M"] | None = None,
    causal: bool = True,
    real: Bool[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T H K"]:
    """Softmax attention of each token over itself and earlier tokens.

    Query head h reads key/value head `h // (H // G)`. Scores are normalized in
    float32. Padding on the right needs no mask, because no earlier token sees it.

    `scale` is a factor on the scores (None: K^-1/2). They then become `softcap *
    tanh(scores / softcap)`, if it is given, and `bias` is added by head and key
    position. `window` is the number of tokens that each one sees, itself
    included. `dropout_key` enables dropout of the weights. With `positions` of the
    queries, key i has position i and there may be more keys than queries. If
    not `causal`, each token sees all of those that `real` names.

    Source: "Attention Is All You Need", arXiv 1706.03762, eq. 1; grouping as in
    "GQA", arXiv 2305.13245; the window as in "Longformer", arXiv 2004.05150, 3.1;
    the cap as in "Gemma 2", arXiv 2408.00118, section 2.
    """
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    factor = size**-0.5 if scale is None else scale
    # Heads before tokens, and an added instead of a selected mask, make the backward
    # pass on CPU two to three times faster.
    query = (query * factor).reshape(batch, length, groups, heads // groups, size)
    query = query.transpose(0, 2, 3, 1, 4)  # B G H/G T K
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # B G T K
    scores = jnp.einsum(
        "bgrtk,bgsk->bgrts", query, key, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    keys = jnp.arange(key.shape[2])[None, None, :]
    rows = jnp.arange(length)[None, :] if positions is None else positions
    seen = keys <= rows[:, :, None]
    if window is not None and window < key.shape[2]:
        seen = seen & (keys > rows[:, :, None] - window)
    if not causal:
        seen = jnp.ones((1, 1, length), bool) if real is None else real[:, None]
    scores = scores + jnp.where(seen, 0.0, HIDDEN)[:, None, None]
    if bias is not None:
        scores = scores + bias.reshape(1, groups, heads // groups, 1, -1)
    weights = softmax(scores)
    if dropout_key is not None:
        weights = dropout(weights, dropout_rate, dropout_key)
    mixed = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(value.dtype), value)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


class SelfAttention(nn.Module):
    """Projections around `causal_attention`."""

    config: Attention
    context: CallConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], place: Place) -> Float[Array, "B T D"]:
        """Mix tokens."""
        config, context = self.config, self.context
        batch, length, width = x.shape
        sizes = (config.heads, config.kv_heads, config.kv_heads)
        names = ("query", "key", "value")
        layers = (
            Projection(n * config.head_dim, config.qkv_bias, context, name=name)
            for name, n in zip(names, sizes, strict=True)
        )
        # One wide product instead of three, and one rotation of queries and keys.
        fused = affine_together(x, [layer(width) for layer in layers])
        if config.clip_qkv is not None:
            fused = jnp.clip(fused, -config.clip_qkv, config.clip_qkv)
        fused = fused.reshape(batch, length, sum(sizes), config.head_dim)
        rotated = config.heads + config.kv_heads
        query_key, value = fused[:, :, :rotated], fused[:, :, rotated:]
        if config.qk_norm is not None:
            query_key = self._normalize(query_key, config.qk_norm)
        bias = None
        match config.position:
            case Rotary() as rotary:
                frequencies = rotary_frequencies(rotary, config.rotary_dim)
                query_key = rotate(
                    query_key,
                    place.positions,
                    frequencies,
                    interleaved=rotary.interleaved,
                )
            case Alibi() as alibi:
                keys = context.memory or length
                bias = alibi_bias(alibi, config.heads, jnp.arange(keys))
                if alibi.before_scaling:
                    bias = bias * config.head_dim**-0.5
            case None:
                pass
        query, key = jnp.split(query_key, [config.heads], axis=2)
        if context.memory:
            key = remembered(self, "keys", key, place)
            value = remembered(self, "values", value, place)
        rate = context.model.dropout.attention if context.train else 0.0
        mixed = causal_attention(
            query,
            key,
            value,
            positions=place.positions if context.memory else None,
            scale=self._scale(place, x.dtype),
            softcap=config.score_softcap,
            window=config.window,
            bias=bias,
            causal=config.causal,
            real=place.real,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0 else None,
        )
        mixed = mixed.reshape(batch, length, config.heads * config.head_dim)
        return projected(
            mixed, width, config.out_bias, context, "output", to_residual=True
        )

    def _scale(self, place: Place, dtype: jnp.dtype) -> float | Array | None:
        """The factor on the scores; of a traced layer, in the dtype of the queries."""
        config = self.config
        if not config.scale_by_layer:
            return config.scale
        scale = config.head_dim**-0.5 if config.scale is None else config.scale
        return (scale / place.layer).astype(dtype)

    def _normalize(
        self, query_key: Float[Array, "B T R K"], config: QueryKeyNorm
    ) -> Float[Array, "B T R K"]:
        def normalized(name: str, half: Array) -> Array:
            heads, dtype = half.shape[2], self.context.param_dtype
            own = heads if config.per_head else None
            norm = Normalize(config.norm, dtype, heads=own, name=name)
            if config.joint:
                return norm(half.reshape(*half.shape[:2], -1)).reshape(half.shape)
            return norm(half)

        query = normalized("query_norm", query_key[:, :, : self.config.heads])
        key = normalized("key_norm", query_key[:, :, self.config.heads :])
        return jnp.concatenate([query, key], axis=2)
