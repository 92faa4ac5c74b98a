"""Tiny configs that between them use every field, with parameters far from zero."""

import dataclasses
from functools import lru_cache, partial

import jax
import numpy as np
from family_zoo import VARIANTS, config_json

from lt_mia_jax.checkpoints import read_config
from lt_mia_jax.models import (
    LanguageModel,
    gpt2_like,
    griffin_like,
    llama_like,
    mamba_like,
    neox_like,
    rwkv_like,
)
from lt_mia_jax.models.config import (
    ModelConfig,
    RmsNorm,
)
from lt_mia_jax.trees import flatten, unflatten

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 23, 16, 2, 4, 12


def with_block(config: ModelConfig, **parts) -> ModelConfig:
    """The config with fields of its only block replaced; dicts replace deeper."""
    block = config.pattern[0]
    new = {
        name: dataclasses.replace(getattr(block, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in parts.items()
    }
    return dataclasses.replace(config, pattern=(dataclasses.replace(block, **new),))


@lru_cache
def variant(name: str) -> ModelConfig:
    return read_config(config_json(name), name)


@lru_cache
def configs() -> dict[str, ModelConfig]:
    size = (VOCAB, WIDTH, LAYERS, HEADS, CONTEXT)
    return {
        **{name: variant(name) for name in VARIANTS},
        "gpt2": gpt2_like(*size),
        "llama": llama_like(*size),
        "neox": neox_like(*size, rotary_fraction=0.5),
        "mamba-preset": mamba_like(VOCAB, WIDTH, LAYERS),
        "rwkv-preset": rwkv_like(VOCAB, WIDTH, LAYERS),
        "griffin-preset": griffin_like(VOCAB, WIDTH, LAYERS, HEADS),
    }


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.3):
    """Normal leaves, scales around one: biases too, so that a lost one shows."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, leaf in flatten(LanguageModel(config).shapes()).items():
        values = scale * rng.normal(size=leaf.shape)
        # Around one, but for factors that are 1 + w already.
        offset = name.endswith("scale") and not any(
            isinstance(norm, RmsNorm) and norm.unit_offset
            for norm in (config.final_norm, config.pattern[0].norm)
        )
        flat[name] = (values + offset).astype(np.float32)
    return unflatten(flat)


def random_ids(seed: int = 1, shape: tuple[int, int] = (2, 9)):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def forward(model: LanguageModel, params, ids, dropout_key=None):
    """Logits, compiled once a model for all tests of one run."""
    return model.apply(params, ids, dropout_key=dropout_key)
