"""Small bases to train from scratch, one per supported checkpoint family.

Each can be saved and opened by transformers under the family's `model_type`.
"""

from lt_mia_jax.models.config import (
    Attention,
    BlockConfig,
    Dropout,
    Embedding,
    LayerNorm,
    Learned,
    Mlp,
    ModelConfig,
    Residual,
    RmsNorm,
    Rotary,
    Tied,
    Untied,
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
    norm = LayerNorm(eps=1e-5)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            qkv_bias=True,
            out_bias=True,
        ),
        feed_forward=Mlp(width=4 * width, activation="gelu_tanh"),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=(block,),
        embedding=Embedding(positions=Learned(size=context)),
        final_norm=norm,
        head=Tied(),
        context=context,
        dropout=Dropout(embedding=dropout, attention=dropout, residual=dropout),
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

    Args:
      vocab_size: tokens.
      width: of the residual stream; `heads` must divide it.
      layers: number of blocks.
      heads: query heads.
      context: longest sequence, in tokens.
      kv_heads: key/value heads; None is `heads`.
      feed_forward: middle width; None is 8/3 x width rounded up to a multiple of 8.
      tied: whether the head reuses the token embedding.
    """
    norm = RmsNorm(eps=1e-6)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=kv_heads or heads,
            head_dim=width // heads,
            position=Rotary(),
        ),
        feed_forward=Mlp(
            width=feed_forward or -(-width * 8 // 24) * 8,
            activation="silu",
            gated=True,
            bias=False,
        ),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=(block,),
        embedding=Embedding(),
        final_norm=norm,
        head=Tied() if tied else Untied(),
        context=context,
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
    norm = LayerNorm(eps=1e-5)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            qkv_bias=True,
            out_bias=True,
            position=Rotary(fraction=rotary_fraction),
        ),
        feed_forward=Mlp(width=4 * width, activation="gelu"),
        norm=norm,
        residual=Residual.PARALLEL if parallel else Residual.SEQUENTIAL,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=(block,),
        embedding=Embedding(),
        final_norm=norm,
        head=Untied(),
        context=context,
    )
