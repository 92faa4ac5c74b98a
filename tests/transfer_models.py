"""A tiny model of each kind of layer, and parameters made without compiling."""

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.models import (
    LanguageModel,
    gpt2_like,
    griffin_like,
    llama_like,
    mamba_like,
    rwkv_like,
)
from lt_mia_jax.models.execution import ExecutionConfig

CONFIGS = {
    "gpt2": gpt2_like(20, 8, 4, 2, 12),
    "llama": llama_like(20, 8, 4, 2, 12),
    "mamba": mamba_like(20, 8, 4),
    "rwkv": rwkv_like(20, 8, 4),
    "griffin": griffin_like(20, 8, 8, 2),
}
"""The last one repeats a unit of three layers twice, and ends with two of the third."""


def tiny_model(name):
    return LanguageModel(CONFIGS[name], ExecutionConfig(unroll=1))


def params_like(model, seed, scale=0.3, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), dtype),
        model.shapes(),
    )


def moved(params, seed, scale=0.02):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), params
    )


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )
