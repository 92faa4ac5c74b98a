"""The learned attack: sequence classifiers as pure functions of nested dicts.

Five architectures share one door, `init(config, key)` and `apply(config, params,
features, mask)`. Kernels are stored (inputs, outputs); encoder layers are stacked on a
leading axis.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.attacks.learned.classifier_config import MAX_STEPS, ClassifierConfig
from lt_mia_jax.attacks.learned.classifier_init import init as init
from lt_mia_jax.attacks.learned.torch_state import from_torch_state as from_torch_state
from lt_mia_jax.errors import InputError

ROUNDING = 0.02
"""Most by which a dropout rate may be off, relative to it."""
EPSILON = 1e-5  # torch's LayerNorm; Flax would take 1e-6
# Not -inf: a row without any valid step must stay finite inside, so that its
# gradient is zero rather than NaN. exp() of it is exactly 0 beside any real score.
_EXCLUDED = -1e30

_CONSTANTS = ("input_mean", "input_scale")

AnyArray = Array | np.ndarray


def split_constants(params: Params) -> tuple[Params, Params]:
    """Parameters to train, and the input constants that no optimizer may touch."""
    constants = {name: params[name] for name in _CONSTANTS if name in params}
    return {k: v for k, v in params.items() if k not in constants}, constants


def _linear(params: Params, x: Array) -> Array:
    # Of two matrices: the kernel's gradient over two axes is half as fast on CPU.
    rows = x.reshape(-1, x.shape[-1]) @ params["kernel"] + params["bias"][None]
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def _layer_norm(params: Params, x: Array) -> Array:
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scaled = centered * jax.lax.rsqrt(variance + EPSILON)
    return scaled * params["scale"].reshape(shape) + params["bias"].reshape(shape)


Dropout = Callable[[Array, int], Array]


def _make_dropout(rate: float, key: Array | None) -> Dropout:
    """Dropout of `x` under the `place`-th derived key; the identity without a key."""
    if key is None or rate == 0:
        return lambda x, place: x
    # Four decisions per random word where 1/256 is fine enough for the rate, otherwise
    # two: random words are a sixth of a training step on CPU. The scale is that of the
    # rounded rate.
    fine = abs(round(rate * 256) / (rate * 256) - 1) <= ROUNDING
    kind = jnp.uint8 if fine else jnp.uint16
    levels, each = (256, 4) if fine else (65536, 2)
    dropped = max(1, round(rate * levels))
    scale = levels / (levels - dropped)

    def drop(x: Array, place: int) -> Array:
        words = (*x.shape[:-1], -(-x.shape[-1] // each))
        bits = jax.random.bits(jax.random.fold_in(key, place), words, jnp.uint32)
        parts = jax.lax.bitcast_convert_type(bits, kind)
        parts = parts.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
        return jnp.where(parts >= dropped, x * scale, 0)

    return drop


@functools.cache
def _sinusoids(width: int) -> np.ndarray:
    """(MAX_STEPS, width) table: sines at even columns, cosines at odd ones."""
    frequency = np.exp(-np.arange(0, width, 2) * (math.log(10000.0) / width))
    angle = np.arange(MAX_STEPS)[:, None] * frequency[None]
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return table.reshape(MAX_STEPS, width).astype(np.float32)


def _attention(
    params: Params, x: Array, near: Array, heads: int, drop: Dropout, place: int
) -> Array:
    b, t, d = x.shape
    packed = _linear(params["qkv"], x).reshape(b, t, 3, heads, d // heads)
    query, key, value = packed.transpose(2, 0, 3, 1, 4)  # each B H T K
    scores = (query / math.sqrt(d // heads)) @ key.swapaxes(-1, -2)
    scores = jnp.where(near[:, None], scores, _EXCLUDED)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    # Normalizing after the product touches K columns instead of T.
    mixed = drop(weights, place) @ value / weights.sum(axis=-1, keepdims=True)
    return _linear(params["output"], mixed.transpose(0, 2, 1, 3).reshape(b, t, d))


def _encoder_layer(
    params: Params, x: Array, near: Array, heads: int, drop: Dropout, place: int
) -> Array:
    attended = _attention(params, x, near, heads, drop, place)
    x = _layer_norm(params["norm1"], x + drop(attended, place + 1))
    hidden = drop(jax.nn.relu(_linear(params["up"], x)), place + 2)
    changed = drop(_linear(params["down"], hidden), place + 3)
    return _layer_norm(params["norm2"], x + changed)


def _attention_pool(params: Params, x: Array, texts: Array) -> Array:
    hidden = jnp.tanh(_linear(params["hidden"], x))
    scores = _linear(params["output"], hidden)[..., 0]
    weights = jax.nn.softmax(jnp.where(texts, scores[:, None], _EXCLUDED), axis=-1)
    return weights @ x  # B S D


def _masked_mean(x: Array, mask: Array) -> Array:
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(x.dtype)
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / count


def _head(params: Params, x: Array, drop: Dropout) -> Array:
    hidden = drop(jax.nn.relu(_linear(params["hidden"], x)), 1)
    return _linear(params["output"], hidden)[..., 0]


def _layers(params: Params) -> list[Params]:
    # Unrolled: for two to four layers a scan runs a fifth slower on CPU.
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(count)]


class _Texts(NamedTuple):
    """Which steps belong together."""

    near: Array
    """What a step attends to, `"B 1 T"` or `"B T T"`."""
    position: Array
    """Of a step in its text, `"1 T"` or `"B T"`."""
    members: Array
    """Valid steps of each text of a row, `"B S T"`."""


def _several_texts(mask: Array, segments: Array, slots: int) -> _Texts:
    steps = mask.shape[1]
    step = jnp.arange(steps)[None, None]
    of_text = (
        segments[:, None] == jnp.arange(slots, dtype=segments.dtype)[None, :, None]
    )
    first = jnp.where(of_text, step, steps).min(axis=-1, keepdims=True)  # B S 1
    start = jnp.where(of_text, first, 0).sum(axis=1)
    same = segments[:, :, None] == segments[:, None]
    return _Texts(same & mask[:, None], step[0] - start, of_text & mask[:, None])


def _transformer(
    config: ClassifierConfig, params: Params, x: Array, texts: _Texts, drop: Dropout
) -> Array:
    steps = x.shape[1]
    if steps > MAX_STEPS:
        raise InputError(f"{steps} steps; the transformer reads at most {MAX_STEPS}")
    x = drop(_layer_norm(params["norm"], _linear(params["proj"], x)), 0)
    x = x + jnp.asarray(_sinusoids(config.width))[texts.position]
    for i, layer in enumerate(_layers(params)):
        x = _encoder_layer(layer, x, texts.near, config.heads, drop, 2 + 4 * i)
    return _head(
        params["head"], _attention_pool(params["pool"], x, texts.members), drop
    )


def _pooled_transformer(params: Params, x: Array, mask: Array, drop: Dropout) -> Array:
    x = _linear(params["proj"], _masked_mean(x, mask))
    x = drop(_layer_norm(params["norm"], x), 0)
    for i, layer in enumerate(_layers(params)):
        hidden = drop(jax.nn.relu(_linear(layer["up"], x)), 2 + i)
        x = _layer_norm(layer["norm"], _linear(layer["down"], hidden))
    return _head(params["head"], x, drop)


def _perceptron(params: Params, x: Array, drop: Dropout) -> Array:
    last = sum(name.startswith("dense_") for name in params) - 1
    for i in range(last):
        x = drop(jax.nn.relu(_linear(params[f"dense_{i}"], x)), i)
    return _linear(params[f"dense_{last}"], x)[:, 0]


def apply(
    config: ClassifierConfig,
    params: Params,
    features: Float[AnyArray, "B T C"],
    mask: Bool[AnyArray, "B T"] | Integer[AnyArray, "B T"],
    *,
    dropout_key: Array | None = None,
) -> Float[Array, " B"]:
    """Membership logit per sequence; higher = more likely a member.

    Pure; safe under jit, vmap and grad with `config` static. Values at masked steps
    are ignored, whatever they are. A sequence without any valid step has no score: it
    gives NaN for its own row only, and the gradients of the other rows stay finite.

    Args:
      config: the architecture.
      params: from `init`, `from_torch_state` or a saved attack.
      features: per-step features, computed in float32; of all blocks, whichever the
        configuration sees.
      mask: true (or non-zero) at valid steps.
      dropout_key: turns dropout on; None scores deterministically.

    Raises:
      InputError: shapes do not fit the configuration (at trace time).

    Source: specification of the LT-MIA classifier (arXiv 2604.03199): projection,
    LayerNorm, sinusoids, post-norm ReLU encoder without a final norm, attention
    pooling, two-layer head.
    """
    x, mask = _inputs(config, params, features, mask)
    drop = _make_dropout(config.dropout, dropout_key)
    match config.architecture:
        case "transformer":
            texts = _Texts(mask[:, None], jnp.arange(x.shape[1])[None], mask[:, None])
            logits = _transformer(config, params, x, texts, drop)[:, 0]
        case "pooled_transformer":
            logits = _pooled_transformer(params, x, mask, drop)
        case "mean_mlp":
            logits = _perceptron(params, _masked_mean(x, mask), drop)
        case "lr" | "mlp":
            logits = _perceptron(params, x.reshape(x.shape[0], -1), drop)
    return jnp.where(mask.any(axis=1), logits, jnp.nan)


def apply_packed(
    config: ClassifierConfig,
    params: Params,
    features: Float[AnyArray, "B T C"],
    mask: Bool[AnyArray, "B T"] | Integer[AnyArray, "B T"],
    segments: Integer[AnyArray, "B T"],
    slots: int,
    *,
    dropout_key: Array | None = None,
) -> Float[Array, "B S"]:
    """Membership logits of rows that several texts share, one after the other.

    Each text's logit is that of `apply` on a row of its own; NaN in empty slots. A row
    of many short texts costs as much as one of a long text. `segments` holds the slot
    of the text to which a step belongs (-1: none), of S = `slots` at most. Only the
    transformer gains by it; other architectures are refused.
    """
    if config.architecture != "transformer":
        raise InputError(
            f"the {config.architecture} classifier reads a row a text; only the "
            "transformer takes rows of several"
        )
    x, mask = _inputs(config, params, features, mask)
    texts = _several_texts(mask, jnp.asarray(segments), slots)
    drop = _make_dropout(config.dropout, dropout_key)
    logits = _transformer(config, params, x, texts, drop)
    return jnp.where(texts.members.any(axis=-1), logits, jnp.nan)


def _inputs(
    config: ClassifierConfig, params: Params, features: AnyArray, mask: AnyArray
) -> tuple[Array, Array]:
    """What is seen, zero at masked steps, and the mask as bool."""
    flattens = config.architecture in ("lr", "mlp")
    wanted = (config.length if flattens else features.shape[1], config.inputs)
    if features.shape[1:] != wanted:
        raise InputError(
            f"features have (steps, columns) {features.shape[1:]}, "
            f"the {config.architecture} classifier expects {wanted}"
        )
    x = config.select(jnp.asarray(features, jnp.float32))
    mask = jnp.asarray(mask).astype(bool)
    if config.standardise:
        mean, scale = params["input_mean"], params["input_scale"]
        x = (x - mean[None, None]) / scale[None, None]
    return jnp.where(mask[..., None], x, 0), mask
