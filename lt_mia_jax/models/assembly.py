"""From flat settings, such as those of a config.json, to `ModelConfig` and back.

Each function takes the settings of one kind of model by keyword. They are fields of the
parts of `ModelConfig` under their own name unless a docstring says otherwise; `eps` is
that of all norms, `inner` the width of a recurrence, `feed_forward` the width of the
middle layer. `settings_of` is their inverse; a model that none of them makes has no
settings.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from lt_mia_jax.models.config import (
    SIZES,
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
    NormPlace,
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

QK_NORMS: dict[str, Callable[[float], QueryKeyNorm]] = {
    "layer": lambda eps: QueryKeyNorm(norm=LayerNorm(eps=eps)),
    "layer_per_head": lambda eps: QueryKeyNorm(
        norm=LayerNorm(eps=eps, bias=False), per_head=True
    ),
    "rms": lambda eps: QueryKeyNorm(norm=RmsNorm(eps=eps)),
    "rms_offset": lambda eps: QueryKeyNorm(norm=RmsNorm(eps=eps, unit_offset=True)),
    "rms_joint": lambda eps: QueryKeyNorm(norm=RmsNorm(eps=eps), joint=True),
}
"""Norms of queries and keys: shared by all heads, of each head's own, or joint."""


def transformer(
    *,
    heads: int,
    feed_forward: int,
    activation: Activation,
    norm: str,
    eps: float,
    kv_heads: int | None = None,
    norm_scale: bool = True,
    norm_bias: bool = True,
    feed_forward_bias: bool = False,
    gated: bool = False,
    learned_positions: bool = False,
    position_offset: int = 0,
    windows: tuple[int | None, ...] = (None,),
    position: Rotary | Alibi | None = None,
    local_position: Rotary | Alibi | None = None,
    qk_norm: str | None = None,
    residual: str = "sequential",
    norm_place: str = "input",
    final_norm: bool = True,
    softcap: float | None = None,
    tied: bool = False,
    head_bias: bool = False,
    embedding_scale: float | None = None,
    embedding_norm: bool = False,
    embedding_width: int | None = None,
    dropout_embedding: float = 0.0,
    dropout_attention: float = 0.0,
    dropout_residual: float = 0.0,
    **settings: Any,
) -> ModelConfig:
    """A decoder whose layers differ in their attention window and positions at most.

    `norm` is `layer`, `rms`, or `rms_offset` (the factor is 1 + w); `norm_scale` and
    `norm_bias` concern layer norms. `qk_norm` is a name of `QK_NORMS` or None.
    `windows` are those of the layers, repeated; layers with one have `local_position`
    if it is given. `residual` is a value of `Residual`, `norm_place` one of
    `NormPlace`. `softcap` is that of the logits. `embedding_norm` puts a norm like the
    others after the embedding. Further settings are the sizes and fields of
    `Attention`.
    """
    sizes = _sizes(settings)
    norms = {
        "layer": LayerNorm(eps=eps, scale=norm_scale, bias=norm_bias),
        "rms": RmsNorm(eps=eps),
        "rms_offset": RmsNorm(eps=eps, unit_offset=True),
    }
    mlp = Mlp(
        width=feed_forward, activation=activation, gated=gated, bias=feed_forward_bias
    )
    pattern = tuple(
        BlockConfig(
            mixer=Attention(
                heads=heads,
                kv_heads=kv_heads or heads,
                window=window,
                position=(window and local_position) or position,
                qk_norm=None if qk_norm is None else QK_NORMS[qk_norm](eps),
                **settings,
            ),
            feed_forward=mlp,
            norm=norms[norm],
            residual=Residual(residual),
            norm_place=NormPlace(norm_place),
        )
        for window in windows
    )
    positions = None
    if learned_positions:
        positions = Learned(size=sizes["context"], offset=position_offset)
    return ModelConfig(
        pattern=pattern,
        embedding=Embedding(
            positions=positions,
            scale=embedding_scale,
            norm=norms[norm] if embedding_norm else None,
            width=embedding_width,
        ),
        final_norm=norms[norm] if final_norm else None,
        head=Tied() if tied else Untied(bias=head_bias),
        logit_softcap=softcap,
        dropout=Dropout(
            embedding=dropout_embedding,
            attention=dropout_attention,
            residual=dropout_residual,
        ),
        **sizes,
    )


def mamba(*, inner: int, eps: float, tied: bool, **settings: Any) -> ModelConfig:
    """Selective state-space blocks; further settings are sizes and `Mamba` fields."""
    sizes, norm = _sizes(settings), RmsNorm(eps=eps)
    mixer = Mamba(width=inner, **settings)
    return ModelConfig(
        pattern=(BlockConfig(mixer=mixer, feed_forward=None, norm=norm),),
        embedding=Embedding(),
        final_norm=norm,
        head=Tied() if tied else Untied(),
        **sizes,
    )


def rwkv(
    *, inner: int, feed_forward: int, eps: float, tied: bool, **sizes: Any
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
        pattern=(block,),
        embedding=Embedding(norm=norm),
        final_norm=LayerNorm(eps=1e-5),
        head=Tied() if tied else Untied(),
        **sizes,
    )


def griffin(
    *,
    kinds: tuple[str, ...],
    inner: int,
    heads: int,
    conv_width: int,
    feed_forward: int,
    activation: Activation,
    eps: float,
    tied: bool,
    softcap: float,
    embedding_scale: float,
    dropout_attention: float,
    **settings: Any,
) -> ModelConfig:
    """Gated linear recurrences and local attention in turn, as `kinds` says.

    Further settings are the sizes and fields of `Attention`.
    """
    sizes, norm = _sizes(settings), RmsNorm(eps=eps, unit_offset=True)
    mixers = {
        "recurrent": RgLru(
            width=inner, heads=heads, conv_width=conv_width, activation=activation
        ),
        "attention": Attention(heads=heads, out_bias=True, **settings),
    }
    mlp = Mlp(width=feed_forward, activation=activation, gated=True, bias=True)
    return ModelConfig(
        pattern=tuple(
            BlockConfig(mixer=mixers[kind], feed_forward=mlp, norm=norm)
            for kind in kinds
        ),
        embedding=Embedding(scale=embedding_scale),
        final_norm=norm,
        head=Tied() if tied else Untied(),
        logit_softcap=softcap,
        dropout=Dropout(attention=dropout_attention),
        **sizes,
    )


def _sizes(settings: dict[str, Any]) -> dict[str, Any]:
    """The sizes, taken out of the settings."""
    return {name: settings.pop(name) for name in SIZES}


def bfloat16_root(width: int) -> float:
    """The square root of a width, rounded to bfloat16.

    RecurrentGemma stores this factor of its embedding in bfloat16; see
    `modeling_recurrent_gemma.py` of transformers.
    """
    return float(np.sqrt(width).astype(ml_dtypes.bfloat16))


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Settings from which a model may have been assembled.

    The caller has to check that assembling them gives the same model.
    """
    block, mixers = config.pattern[0], [block.mixer for block in config.pattern]
    found: dict[str, Any] = {
        **{name: getattr(config, name) for name in SIZES},
        **{f"dropout_{place}": rate for place, rate in vars(config.dropout).items()},
        "tied": isinstance(config.head, Tied),
        "head_bias": isinstance(config.head, Untied) and config.head.bias,
        "softcap": config.logit_softcap,
        "eps": block.norm.eps,
        "norm_scale": isinstance(block.norm, RmsNorm) or block.norm.scale,
        "norm_bias": isinstance(block.norm, LayerNorm) and block.norm.bias,
        "residual": block.residual.value,
        "norm_place": block.norm_place.value,
        "final_norm": config.final_norm is not None,
        "embedding_scale": config.embedding.scale,
        "embedding_width": config.embedding.width,
        "kinds": tuple(
            "attention" if isinstance(mixer, Attention) else "recurrent"
            for mixer in mixers
        ),
    }
    for mixer in mixers:
        if not isinstance(mixer, Attention):
            found |= {**vars(mixer), "inner": mixer.width, "width": config.width}
    # If both kinds of mixer have a field, that of attention counts.
    attentions = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    for mixer in attentions:
        found |= {**vars(mixer), "qk_norm": _qk_name(mixer.qk_norm)}
        found["windows"] = tuple(each.window for each in attentions)
    for mixer in attentions:
        found["position" if mixer.window is None else "local_position"] = mixer.position
    match block.feed_forward:
        case Mlp(width=width, activation=activation, gated=gated, bias=bias):
            found |= {"feed_forward": width, "activation": activation}
            found |= {"gated": gated, "feed_forward_bias": bias}
        case RwkvChannelMix(width=width):
            found["feed_forward"] = width
    return found


def _qk_name(norm: QueryKeyNorm | None) -> str | None:
    """The name of a norm of queries and keys; None also for one without a name."""
    if norm is None:
        return None
    made = {name: make(norm.norm.eps) for name, make in QK_NORMS.items()}
    return next((name for name, each in made.items() if each == norm), None)
