"""From flat settings to `ModelConfig` and back: the middle between a table and a model.

Each function takes the settings of one kind of model by keyword. `settings_of` is their
inverse; a model outside what they can make has no settings.
"""

from typing import Any

import ml_dtypes
import numpy as np

from lt_mia_jax.models.config import (
    Activation,
    Alibi,
    Attention,
    BlockConfig,
    Dropout,
    Embedding,
    LayerNorm,
    Learned,
    Mamba,
    Mlp,
    ModelConfig,
    Norm,
    QueryKeyNorm,
    Residual,
    RgLru,
    RmsNorm,
    Rotary,
    RwkvChannelMix,
    RwkvTimeMix,
    Tied,
    Untied,
)


def _norm(kind: str, eps: float, scale: bool = True, bias: bool = True) -> Norm:
    match kind:
        case "layer":
            return LayerNorm(eps=eps, scale=scale, bias=bias)
        case "rms" | "rms_offset":
            return RmsNorm(eps=eps, unit_offset=kind == "rms_offset")
        case _:
            raise AssertionError(f"no norm is called {kind}")


def transformer(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    context: int,
    heads: int,
    head_dim: int,
    feed_forward: int,
    activation: Activation,
    norm: str,
    eps: float,
    kv_heads: int | None = None,
    norm_scale: bool = True,
    norm_bias: bool = True,
    qkv_bias: bool = False,
    out_bias: bool = False,
    feed_forward_bias: bool = False,
    gated: bool = False,
    position: Rotary | Alibi | None = None,
    learned_positions: bool = False,
    position_offset: int = 0,
    windows: tuple[int | None, ...] = (None,),
    scale: float | None = None,
    clip_qkv: float | None = None,
    qk_norm: str | None = None,
    residual: str = "sequential",
    tied: bool = False,
    head_bias: bool = False,
    embedding_scale: float | None = None,
    embedding_norm: bool = False,
    dropout_embedding: float = 0.0,
    dropout_attention: float = 0.0,
    dropout_residual: float = 0.0,
) -> ModelConfig:
    """A decoder whose layers differ in their attention window at most.

    Settings are fields of the parts of `ModelConfig` by their own name, but for these:
    `norm` is `layer`, `rms`, or `rms_offset` (the factor is 1 + w); `qk_norm` is None,
    `layer` (layer norm shared by all heads), `layer_per_head` (without a bias,
    parameters of each head's own) or `rms` (shared); `windows` are those of the layers,
    repeated; `residual` is a value of `Residual`; `embedding_norm` puts a norm like the
    others after the embedding.
    """
    shared = _norm(norm, eps, norm_scale, norm_bias)
    query_key_norms = {
        None: None,
        "layer": QueryKeyNorm(norm=LayerNorm(eps=eps)),
        "layer_per_head": QueryKeyNorm(
            norm=LayerNorm(eps=eps, bias=False), per_head=True
        ),
        "rms": QueryKeyNorm(norm=RmsNorm(eps=eps)),
    }
    pattern = tuple(
        BlockConfig(
            mixer=Attention(
                heads=heads,
                kv_heads=kv_heads or heads,
                head_dim=head_dim,
                qkv_bias=qkv_bias,
                out_bias=out_bias,
                position=position,
                window=window,
                scale=scale,
                clip_qkv=clip_qkv,
                qk_norm=query_key_norms[qk_norm],
            ),
            feed_forward=Mlp(
                width=feed_forward,
                activation=activation,
                gated=gated,
                bias=feed_forward_bias,
            ),
            norm=shared,
            residual=Residual(residual),
        )
        for window in windows
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=pattern,
        embedding=Embedding(
            positions=Learned(size=context, offset=position_offset)
            if learned_positions
            else None,
            scale=embedding_scale,
            norm=shared if embedding_norm else None,
        ),
        final_norm=shared,
        head=Tied() if tied else Untied(bias=head_bias),
        context=context,
        dropout=Dropout(
            embedding=dropout_embedding,
            attention=dropout_attention,
            residual=dropout_residual,
        ),
    )


def mamba(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    context: int,
    inner: int,
    state: int,
    step_rank: int,
    conv_width: int,
    conv_bias: bool,
    bias: bool,
    activation: Activation,
    eps: float,
    tied: bool,
) -> ModelConfig:
    """Selective state-space blocks without a feed-forward."""
    norm = RmsNorm(eps=eps)
    block = BlockConfig(
        mixer=Mamba(
            width=inner,
            state=state,
            step_rank=step_rank,
            conv_width=conv_width,
            conv_bias=conv_bias,
            bias=bias,
            activation=activation,
        ),
        feed_forward=None,
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


def rwkv(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    context: int,
    inner: int,
    feed_forward: int,
    eps: float,
    tied: bool,
) -> ModelConfig:
    """Time mix and channel mix; the embedding is normalized once.

    The final norm keeps its own epsilon, as in `modeling_rwkv.py` of transformers.
    """
    norm = LayerNorm(eps=eps)
    block = BlockConfig(
        mixer=RwkvTimeMix(width=inner),
        feed_forward=RwkvChannelMix(width=feed_forward),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=(block,),
        embedding=Embedding(norm=norm),
        final_norm=LayerNorm(eps=1e-5),
        head=Tied() if tied else Untied(),
        context=context,
    )


def griffin(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    context: int,
    kinds: tuple[str, ...],
    inner: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    qkv_bias: bool,
    position: Rotary,
    window: int,
    conv_width: int,
    feed_forward: int,
    activation: Activation,
    eps: float,
    tied: bool,
    softcap: float,
    embedding_scale: float,
    dropout_attention: float,
) -> ModelConfig:
    """Gated linear recurrences and local attention in turn, as `kinds` says."""
    norm = RmsNorm(eps=eps, unit_offset=True)
    mixers = {
        "recurrent": RgLru(
            width=inner, heads=heads, conv_width=conv_width, activation=activation
        ),
        "attention": Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            out_bias=True,
            position=position,
            window=window,
        ),
    }
    pattern = tuple(
        BlockConfig(
            mixer=mixers[kind],
            feed_forward=Mlp(
                width=feed_forward, activation=activation, gated=True, bias=True
            ),
            norm=norm,
        )
        for kind in kinds
    )
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pattern=pattern,
        embedding=Embedding(scale=embedding_scale),
        final_norm=norm,
        head=Tied() if tied else Untied(),
        context=context,
        logit_softcap=softcap,
        dropout=Dropout(attention=dropout_attention),
    )


def bfloat16_root(width: int) -> float:
    """The square root of a width, rounded to bfloat16.

    RecurrentGemma keeps this factor of its embedding in bfloat16, whatever it computes
    in; see `modeling_recurrent_gemma.py` of transformers.
    """
    return float(np.sqrt(width).astype(ml_dtypes.bfloat16))


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """The settings that a model may have been assembled from.

    Only what can be read off; whether assembling them again gives the same model is
    for the caller to check.
    """
    block, dropout = config.pattern[0], config.dropout
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "width": config.width,
        "layers": config.layers,
        "context": config.context,
        "tied": isinstance(config.head, Tied),
        "head_bias": isinstance(config.head, Untied) and config.head.bias,
        "softcap": config.logit_softcap,
        "eps": block.norm.eps,
        "norm_scale": isinstance(block.norm, RmsNorm) or block.norm.scale,
        "norm_bias": isinstance(block.norm, LayerNorm) and block.norm.bias,
        "residual": block.residual.value,
        "embedding_scale": config.embedding.scale,
        "dropout_embedding": dropout.embedding,
        "dropout_attention": dropout.attention,
        "dropout_residual": dropout.residual,
        "kinds": tuple(
            "attention" if isinstance(b.mixer, Attention) else "recurrent"
            for b in config.pattern
        ),
    }
    # Attention last: where both kinds of mixer have a name, it is attention's.
    for part in sorted(
        (b.mixer for b in config.pattern), key=lambda m: isinstance(m, Attention)
    ):
        match part:
            case Attention():
                norm = part.qk_norm
                found |= {
                    name: getattr(part, name)
                    for name in (
                        "heads",
                        "kv_heads",
                        "head_dim",
                        "qkv_bias",
                        "out_bias",
                        "position",
                        "window",
                        "scale",
                        "clip_qkv",
                    )
                }
                found["qk_norm"] = None
                if norm is not None:
                    kind = "layer" if isinstance(norm.norm, LayerNorm) else "rms"
                    found["qk_norm"] = kind + ("_per_head" if norm.per_head else "")
                found["windows"] = tuple(
                    b.mixer.window
                    for b in config.pattern
                    if isinstance(b.mixer, Attention)
                )
            case Mamba() | RwkvTimeMix() | RgLru():
                found["inner"] = part.width
                names = ("state", "step_rank", "conv_width", "conv_bias", "bias")
                names += ("activation", "heads")
                found |= {n: getattr(part, n) for n in names if hasattr(part, n)}
    match block.feed_forward:
        case Mlp(width=width, activation=activation, gated=gated, bias=bias):
            found |= {"feed_forward": width, "activation": activation}
            found |= {"gated": gated, "feed_forward_bias": bias}
        case RwkvChannelMix(width=width):
            found["feed_forward"] = width
        case None:
            pass
    return found
