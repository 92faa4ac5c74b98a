"""Tiny configs that between them use every field, with parameters far from zero."""

import dataclasses
from functools import partial

import jax
import numpy as np

from lt_mia_jax.models import LanguageModel, gpt2_like, llama_like, neox_like
from lt_mia_jax.models.config import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rotary,
    Untied,
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


def configs() -> dict[str, ModelConfig]:
    size = (VOCAB, WIDTH, LAYERS, HEADS, CONTEXT)
    gpt2, llama = gpt2_like(*size), llama_like(*size)
    mixed = with_block(llama, mixer={"kv_heads": 2})
    llama3 = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8
    )
    return {
        "gpt2": gpt2,
        "gpt2-gelu": with_block(gpt2, feed_forward={"activation": "gelu", "width": 24}),
        "gpt2-relu": with_block(gpt2, feed_forward={"activation": "relu"}),
        "gpt2-untied": dataclasses.replace(gpt2, head=Untied()),
        "llama": llama,
        "llama-tied": llama_like(*size, tied=True),
        "llama-grouped": llama_like(*size, kv_heads=2, feed_forward=40),
        "llama-one-kv": llama_like(*size, kv_heads=1),
        "llama-biases": with_block(
            llama,
            mixer={"qkv_bias": True, "out_bias": True, "head_dim": 6},
            feed_forward={"bias": True},
        ),
        "llama-linear": with_block(
            mixed, mixer={"position": Rotary(scaling=LinearScaling(factor=4.0))}
        ),
        "llama-llama3": with_block(
            mixed, mixer={"position": Rotary(theta=500.0, scaling=llama3)}
        ),
        "neox": neox_like(*size, rotary_fraction=0.5),
        "neox-sequential": neox_like(*size, rotary_fraction=1.0, parallel=False),
        "neox-no-bias": with_block(
            neox_like(*size, rotary_fraction=0.5),
            mixer={"qkv_bias": False, "out_bias": False},
        ),
    }


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.3):
    """Normal leaves, scales around one: biases too, so that a lost one shows."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, leaf in flatten(LanguageModel(config).shapes()).items():
        values = scale * rng.normal(size=leaf.shape)
        flat[name] = (values + name.endswith("scale")).astype(np.float32)
    return unflatten(flat)


def random_ids(seed: int = 1, shape: tuple[int, int] = (2, 9)):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def forward(model: LanguageModel, params, ids, dropout_key=None):
    """Logits, compiled once a model for all tests of one run."""
    return model.apply(params, ids, dropout_key=dropout_key)
