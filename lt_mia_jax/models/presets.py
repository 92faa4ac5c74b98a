"""Configs of small models of all four families, to train from scratch.

`save_pretrained` writes each under its family's `model_type` for transformers.
"""

from typing import Any

from lt_mia_jax.models import assembly
from lt_mia_jax.models.config import SIZES, ModelConfig, Rotary


def _sizes(vocab_size: int, width: int, layers: int, context: int) -> dict[str, Any]:
    sizes = (vocab_size, width, layers, context)
    return dict(zip(SIZES, sizes, strict=True))


def _with_biases(
    sizes: dict[str, Any], heads: int, activation: Any, **settings: Any
) -> ModelConfig:
    """Layer norms, biases everywhere and an MLP of 4 x width."""
    return assembly.transformer(
        heads=heads,
        head_dim=sizes["width"] // heads,
        feed_forward=4 * sizes["width"],
        activation=activation,
        norm="layer",
        eps=1e-5,
        qkv_bias=True,
        out_bias=True,
        feed_forward_bias=True,
        **sizes,
        **settings,
    )


def gpt2_like(
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    *,
    dropout: float = 0.0,
) -> ModelConfig:
    """Learned positions, layer norm, biases, tanh-GELU MLP of 4 x width, tied head."""
    return _with_biases(
        _sizes(vocab_size, width, layers, context),
        heads,
        "gelu_tanh",
        learned_positions=True,
        tied=True,
        dropout_embedding=dropout,
        dropout_attention=dropout,
        dropout_residual=dropout,
    )


def llama_like(
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    *,
    kv_heads: int | None = None,
    feed_forward: int | None = None,
    tied: bool = False,
) -> ModelConfig:
    """Rotary positions, RMS norm, no biases, gated SiLU MLP of 8/3 x width.

    `heads` must divide `width`. `kv_heads` is `heads` unless given, `feed_forward` (the
    middle width) 8/3 x width rounded up to a multiple of 8. `tied` makes the head reuse
    the token embedding.
    """
    return assembly.transformer(
        **_sizes(vocab_size, width, layers, context),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        feed_forward=feed_forward or -(-width * 8 // 24) * 8,
        activation="silu",
        gated=True,
        norm="rms",
        eps=1e-6,
        position=Rotary(),
        tied=tied,
    )


def neox_like(
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    *,
    rotary_fraction: float = 0.25,
    parallel: bool = True,
) -> ModelConfig:
    """Partial rotary positions, layer norm, biases, GELU MLP, parallel residual."""
    return _with_biases(
        _sizes(vocab_size, width, layers, context),
        heads,
        "gelu",
        position=Rotary(fraction=rotary_fraction),
        residual="parallel" if parallel else "sequential",
    )


def mamba_like(
    vocab_size: int, width: int, layers: int, *, state: int = 16, context: int = 2048
) -> ModelConfig:
    """Selective state space: inner width 2 x width, four taps, tied head."""
    return assembly.mamba(
        **_sizes(vocab_size, width, layers, context),
        inner=2 * width,
        state=state,
        step_rank=-(-width // 16),
        eps=1e-5,
        tied=True,
    )


def rwkv_like(
    vocab_size: int, width: int, layers: int, *, context: int = 1024
) -> ModelConfig:
    """RWKV-4: channel mix of 4 x width, untied head."""
    return assembly.rwkv(
        **_sizes(vocab_size, width, layers, context),
        inner=width,
        feed_forward=4 * width,
        eps=1e-5,
        tied=False,
    )


def griffin_like(
    vocab_size: int, width: int, layers: int, heads: int, *, window: int = 2048
) -> ModelConfig:
    """RecurrentGemma: two gated recurrences, then local attention, repeated."""
    return assembly.griffin(
        **_sizes(vocab_size, width, layers, 8192),
        kinds=("recurrent", "recurrent", "attention"),
        inner=width,
        heads=heads,
        kv_heads=1,
        head_dim=width // heads,
        position=Rotary(fraction=0.5),
        window=window,
        conv_width=4,
        feed_forward=3 * width,
        activation="gelu_tanh",
        eps=1e-6,
        tied=True,
        softcap=30.0,
        embedding_scale=assembly.bfloat16_root(width),
        dropout_attention=0.0,
    )
