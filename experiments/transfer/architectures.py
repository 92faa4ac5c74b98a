"""Architectures of the tiny bases: those that the attack learns from, and others."""

import math
from collections.abc import Callable
from typing import Literal

from lt_mia_jax.models import ModelConfig, assembly, presets
from lt_mia_jax.models.config import Alibi, Rotary

Family = Literal["transformer", "mamba", "rwkv", "griffin"]

FAMILY_NAMES: dict[Family, str] = {
    "transformer": "unseen transformer",
    "mamba": "Mamba",
    "rwkv": "RWKV-4",
    "griffin": "RecurrentGemma",
}

CONTEXT = 128


def _transformer(vocabulary: int, width: int, layers: int, **settings) -> ModelConfig:
    """A block of biases and layer norms, where `settings` do not say otherwise."""
    heads = settings.pop("heads", 4)
    common = {
        "feed_forward": 4 * width,
        "activation": "gelu",
        "norm": "layer",
        "eps": 1e-5,
        "qkv_bias": True,
        "out_bias": True,
        "feed_forward_bias": True,
    }
    return assembly.transformer(
        vocab_size=vocabulary,
        width=width,
        layers=layers,
        context=CONTEXT,
        heads=heads,
        head_dim=width // heads,
        **{**common, **settings},
    )


_PLAIN = {"qkv_bias": False, "out_bias": False, "feed_forward_bias": False}

# Each differs from the others in norm, position, block, width, depth and vocabulary;
# vocabularies reach those of published models, since ranks and tails depend on them.
SEEN: dict[str, Callable[[], ModelConfig]] = {
    "gpt2": lambda: presets.gpt2_like(2048, 128, 3, 4, CONTEXT),
    "llama": lambda: presets.llama_like(4096, 96, 4, 4, CONTEXT, kv_heads=2, tied=True),
    "neox": lambda: presets.neox_like(1024, 128, 3, 4, CONTEXT),
    "opt": lambda: _transformer(
        8192,
        96,
        4,
        activation="relu",
        learned_positions=True,
        position_offset=2,
        tied=True,
    ),
    "bloom": lambda: _transformer(
        3072,
        128,
        2,
        activation="gelu_tanh",
        position=Alibi(),
        embedding_norm=True,
        tied=True,
    ),
    "gemma": lambda: _transformer(
        16384,
        96,
        3,
        activation="gelu_tanh",
        gated=True,
        feed_forward=288,
        norm="rms_offset",
        position=Rotary(),
        kv_heads=1,
        embedding_scale=math.sqrt(96),
        tied=True,
        **_PLAIN,
    ),
    "qwen": lambda: _transformer(
        32768,
        64,
        4,
        activation="silu",
        gated=True,
        feed_forward=176,
        norm="rms",
        position=Rotary(),
        out_bias=False,
        feed_forward_bias=False,
        tied=True,
    ),
    "mpt": lambda: _transformer(
        2048, 160, 2, heads=5, position=Alibi(), norm_bias=False, tied=True, **_PLAIN
    ),
}

# Of equal size, 1.0 to 1.3 M parameters: smaller ones memorize less in as many epochs.
UNSEEN: dict[str, tuple[Family, Callable[[], ModelConfig]]] = {
    "phi": (
        "transformer",
        lambda: _transformer(
            3072,
            112,
            4,
            activation="gelu_tanh",
            position=Rotary(fraction=0.5),
            residual="parallel_shared_norm",
            head_bias=True,
        ),
    ),
    "mamba": ("mamba", lambda: presets.mamba_like(2048, 160, 4)),
    "rwkv": ("rwkv", lambda: presets.rwkv_like(2048, 112, 4, context=CONTEXT)),
    "griffin": ("griffin", lambda: presets.griffin_like(2048, 128, 4, 4)),
}
