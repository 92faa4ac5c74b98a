"""Rotary positions: angles, frequency scaling and the rotation itself."""

import math
from typing import assert_never

import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.models.config import LinearScaling, Llama3Scaling, Rotary


def rotary_frequencies(config: Rotary, dim: int) -> Float[Array, "half"]:
    """Angle per token of each pair, in radians, for `dim` rotated dimensions.

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
            return _llama3_frequencies(frequencies, scaling)
        case _:
            assert_never(config.scaling)


def _llama3_frequencies(
    frequencies: Float[Array, "half"], scaling: Llama3Scaling
) -> Float[Array, "half"]:
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 where a frequency makes fewer than `low` turns in the old context, 1 above
    # `high`, linear between: the two limits meet the plain and divided frequencies.
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1.0 - keep) * frequencies / scaling.factor


def rotate(
    x: Float[Array, "B T H K"],
    positions: Int[Array, "T"],
    frequencies: Float[Array, "half"],
) -> Float[Array, "B T H K"]:
    """Rotate the first `2 * half` dimensions of each head by its position.

    Dimension i is paired with i + half; angles are float32, the result has the dtype
    of `x`. Dimensions beyond the rotated ones pass through.

    Source: "RoFormer", arXiv 2104.09864, eq. 34, in the half-split pairing of
    GPT-NeoX (a permutation of the paper's adjacent pairs).
    """
    half = frequencies.shape[0]
    angles = positions[:, None].astype(jnp.float32) * frequencies[None, :]
    cos = jnp.cos(angles)[None, :, None, :].astype(x.dtype)
    sin = jnp.sin(angles)[None, :, None, :].astype(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)
