"""Rotary and ALiBi positions."""

import math
from typing import assert_never

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.models.config import Alibi, LinearScaling, Llama3Scaling, Rotary


def rotary_frequencies(config: Rotary, dim: int) -> Float[Array, "half"]:
    """Rotation angle per token of each pair of `dim` dimensions, in radians.

    Source: "RoFormer", arXiv 2104.09864, section 3.2.2; the scaled variants follow
    the `rope_parameters` types "linear" and "llama3" of Hugging Face configs.
    """
    exponents = jnp.arange(0, dim, 2, dtype=jnp.float32) / dim
    frequencies = 1.0 / (config.theta**exponents)
    match config.scaling:
        case None:
            return frequencies
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            turns = scaling.original_context * frequencies / (2 * math.pi)
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            # 0 below `low` turns within the old context, 1 above `high`, else linear.
            keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
            return keep * frequencies + (1.0 - keep) * frequencies / scaling.factor
        case _:
            assert_never(config.scaling)


def rotate(
    x: Float[Array, "B T H K"],
    positions: Int[Array, "T"] | Int[Array, "B T"],
    frequencies: Float[Array, "half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "B T H K"]:
    """Rotate the first `2 * half` dimensions of each head by its position.

    Further dimensions pass through. Angles are float32, the result has the dtype of
    `x`. Pairs are (i, i + half), or (2i, 2i + 1) if `interleaved`.

    Source: "RoFormer", arXiv 2104.09864, eq. 34, which is interleaved; the other
    pairing, that of GPT-NeoX, is a permutation of it.
    """
    half = frequencies.shape[0]
    rows = jnp.atleast_2d(positions)[:, :, None].astype(jnp.float32)
    angles = rows * frequencies[None, None, :]
    cos = jnp.cos(angles)[:, :, None, :].astype(x.dtype)
    sin = jnp.sin(angles)[:, :, None, :].astype(x.dtype)
    head, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
    else:
        first, second = head[..., :half], head[..., half:]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        parts = [jnp.stack(parts, axis=-1).reshape(head.shape)]
    return jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)


def alibi_slopes(heads: int) -> Float[np.ndarray, "H"]:
    """Slope of each head: 2^(-8 h / H), h = 1..H, if H is a power of two.

    Otherwise the slopes of the power of two below H, then every second slope of the
    power of two above, starting with the first.

    Source: "Train Short, Test Long", arXiv 2108.12409, section 3 and its released
    code for head counts that are no power of two.
    """
    below = 2 ** math.floor(math.log2(heads))
    plain = [2.0 ** (-8.0 * h / below) for h in range(1, below + 1)]
    between = [2.0 ** (-8.0 * h / (2 * below)) for h in range(1, 2 * below, 2)]
    return np.array((plain + between)[:heads], np.float32)


def alibi_bias(
    config: Alibi, heads: int, positions: Int[Array, "T"]
) -> Float[Array, "H T"]:
    """Bias added to the attention scores, by head and key position; float32.

    It is slope times position. Minus slope times distance differs from it by a
    constant per query, which the softmax ignores.

    Source: "Train Short, Test Long", arXiv 2108.12409, section 3; rounding to
    bfloat16 as in `modeling_falcon.py` of transformers.
    """
    slopes = jnp.asarray(alibi_slopes(heads))
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    bias = slopes[:, None].astype(dtype) * positions[None, :].astype(dtype)
    return bias.astype(jnp.float32)
