"""What each `model_type` of config.json means: data, no logic.

Defaults are those of transformers: a field that a config.json leaves out has them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lt_mia_jax.checkpoints.hf_quirks import (
    BlockTypes,
    FalconLayout,
    GptjRope,
    HalvedWidth,
    LayerWindows,
    MambaSizes,
    MptAttention,
    Window,
)
from lt_mia_jax.checkpoints.hf_rows import (
    Choice,
    Default,
    Field,
    HeadDim,
    Only,
    Rope,
    Row,
    Same,
    Settings,
)
from lt_mia_jax.models import assembly
from lt_mia_jax.models.config import Alibi, ModelConfig


@dataclass(frozen=True)
class Family:
    """A `model_type`: its fields, what they cannot change, and how it is assembled."""

    architecture: str
    """Class in transformers."""
    rows: tuple[Row, ...]
    """Fields and settings; a row may use the settings of earlier ones."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Settings that every model of the family has, or functions of the others."""
    assemble: Callable[..., ModelConfig] = assembly.transformer
    """Makes the model."""


def _four_widths(settings: Settings) -> int:
    return 4 * settings["width"]


def _as_heads(settings: Settings) -> int:
    return settings["heads"]


def _tied(default: bool) -> Field:
    return Field("tie_word_embeddings", "tied", "flag", default)


def _sizes(vocab: int, width: int, layers: int, heads: int) -> tuple[Field, ...]:
    """The four sizes under the names of most families."""
    return (
        Field("vocab_size", "vocab_size", "size", vocab),
        Field("hidden_size", "width", "size", width),
        Field("num_hidden_layers", "layers", "size", layers),
        Field("num_attention_heads", "heads", "size", heads),
    )


def _modern(
    context: int, feed_forward: int, activation: str, groups: Default = _as_heads
) -> tuple[Field, ...]:
    """Fields that Llama and its descendants share."""
    return (
        Field("max_position_embeddings", "context", "size", context),
        Field("intermediate_size", "feed_forward", "size", feed_forward),
        Field("num_key_value_heads", "kv_heads", "size", groups),
        Field("hidden_act", "activation", "activation", activation),
        Field("attention_dropout", "dropout_attention", "number", 0.0),
    )


def _rms_eps() -> Field:
    return Field("rms_norm_eps", "eps", "number", 1e-6)


def _layer_eps(name: str = "layer_norm_eps") -> Field:
    return Field(name, "eps", "number", 1e-5)


def _openai(vocab: int, width: int, layers: int, heads: int) -> tuple[Row, ...]:
    """Fields that GPT-2 and GPT-J share."""
    return (
        Field("vocab_size", "vocab_size", "size", vocab),
        Field("n_embd", "width", "size", width, ("hidden_size",)),
        Field("n_layer", "layers", "size", layers, ("num_hidden_layers",)),
        Field("n_head", "heads", "size", heads, ("num_attention_heads",)),
        HeadDim(),
        Field("n_inner", "feed_forward", "size", _four_widths),
        Field("activation_function", "activation", "activation", "gelu_new"),
        Field("layer_norm_epsilon", "eps", "number", 1e-5),
    )


def _dropouts(default: float) -> tuple[Field, ...]:
    return (
        Field("embd_pdrop", "dropout_embedding", "number", default),
        Field("attn_pdrop", "dropout_attention", "number", default),
        Field("resid_pdrop", "dropout_residual", "number", default),
    )


RMS_GATED = {"norm": "rms", "gated": True}
LAYER_BIASES = {
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "feed_forward_bias": True,
}


def _gemma_scale(settings: Settings) -> float:
    return math.sqrt(settings["width"])


def _griffin_scale(settings: Settings) -> float:
    return assembly.bfloat16_root(settings["width"])


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        (
            *_openai(50257, 768, 12, 12),
            Field("n_positions", "context", "size", 1024, ("max_position_embeddings",)),
            *_dropouts(0.1),
            Only("scale_attn_weights", True),
            Only("scale_attn_by_inverse_layer_idx", False),
            Only("add_cross_attention", False),
            # Only the order of scaling and the precision of the scores.
            Only("reorder_and_upcast_attn", False, also=(True,)),
            _tied(True),
        ),
        {**LAYER_BIASES, "learned_positions": True},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        (
            *_sizes(32000, 4096, 32, 32),
            *_modern(2048, 11008, "silu"),
            HeadDim("head_dim"),
            _rms_eps(),
            Field("attention_bias", ("qkv_bias", "out_bias"), "flag", False),
            Field("mlp_bias", "feed_forward_bias", "flag", False),
            Rope(),
            _tied(False),
        ),
        RMS_GATED,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        (
            *_sizes(50432, 6144, 44, 64),
            HeadDim(),
            Field("max_position_embeddings", "context", "size", 2048),
            Field("intermediate_size", "feed_forward", "size", 24576),
            Field("hidden_act", "activation", "activation", "gelu"),
            _layer_eps(),
            Field("attention_bias", ("qkv_bias", "out_bias"), "flag", True),
            Choice(
                "use_parallel_residual",
                "residual",
                ((True, "parallel"), (False, "sequential")),
            ),
            Field("attention_dropout", "dropout_attention", "number", 0.0),
            Field(
                "hidden_dropout",
                ("dropout_residual", "dropout_embedding"),
                "number",
                0.0,
            ),
            Rope("rotary_emb_base", "rotary_pct", 0.25),
            _tied(False),
        ),
        {"norm": "layer", "feed_forward_bias": True},
    ),
    "gptj": Family(
        "GPTJForCausalLM",
        (
            *_openai(50400, 4096, 28, 16),
            Field("n_positions", "context", "size", 2048, ("max_position_embeddings",)),
            *_dropouts(0.0),
            GptjRope(),
            Only("tie_word_embeddings", False),
        ),
        {
            "norm": "layer",
            "feed_forward_bias": True,
            "head_bias": True,
            "residual": "parallel_shared_norm",
        },
    ),
    "mistral": Family(
        "MistralForCausalLM",
        (
            *_sizes(32000, 4096, 32, 32),
            *_modern(4096 * 32, 14336, "silu", 8),
            HeadDim("head_dim"),
            _rms_eps(),
            Window("sliding_window", 4096),
            Rope(),
            _tied(False),
        ),
        RMS_GATED,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        (
            *_sizes(151936, 4096, 32, 32),
            *_modern(32768, 22016, "silu", 32),
            HeadDim("head_dim"),
            _rms_eps(),
            LayerWindows(),
            Rope(),
            _tied(False),
        ),
        {**RMS_GATED, "qkv_bias": True},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        (
            *_sizes(151936, 4096, 32, 32),
            *_modern(32768, 22016, "silu", 32),
            HeadDim("head_dim", 128),
            _rms_eps(),
            Field("attention_bias", ("qkv_bias", "out_bias"), "flag", False),
            LayerWindows(),
            Rope(),
            _tied(False),
        ),
        {**RMS_GATED, "qk_norm": "rms"},
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        (
            *_sizes(256000, 3072, 28, 16),
            Field("max_position_embeddings", "context", "size", 8192),
            Field("intermediate_size", "feed_forward", "size", 24576),
            Field("num_key_value_heads", "kv_heads", "size", 16),
            Field("attention_dropout", "dropout_attention", "number", 0.0),
            HeadDim("head_dim", 256),
            _rms_eps(),
            # Releases say "gelu" and mean the tanh form.
            Choice(
                "hidden_act",
                "activation",
                (
                    ("gelu_pytorch_tanh", "gelu_tanh"),
                    ("gelu", "gelu_tanh"),
                    ("gelu_new", "gelu_tanh"),
                    ("relu", "relu"),
                    ("silu", "silu"),
                ),
            ),
            Only("hidden_activation", None, also=("gelu_pytorch_tanh", None)),
            Only("use_bidirectional_attention", None, also=(False,)),
            Field("attention_bias", ("qkv_bias", "out_bias"), "flag", False),
            Rope(),
            _tied(True),
        ),
        {"norm": "rms_offset", "gated": True, "embedding_scale": _gemma_scale},
    ),
    "falcon": Family(
        "FalconForCausalLM",
        (
            Field("vocab_size", "vocab_size", "size", 65024),
            Field("hidden_size", "width", "size", 4544, ("n_embed",)),
            Field("num_hidden_layers", "layers", "size", 32, ("n_layer",)),
            Field("num_attention_heads", "heads", "size", 71, ("n_head",)),
            HeadDim(),
            Field("max_position_embeddings", "context", "size", 2048),
            Field("ffn_hidden_size", "feed_forward", "size", _four_widths),
            Field("activation", "activation", "activation", "gelu"),
            _layer_eps("layer_norm_epsilon"),
            Field("bias", ("qkv_bias", "out_bias", "feed_forward_bias"), "flag", False),
            # Applied in places of their own; no released model uses them.
            Only("hidden_dropout", 0.0),
            Only("attention_dropout", 0.0),
            FalconLayout(),
            _tied(True),
        ),
        {"norm": "layer"},
    ),
    "mpt": Family(
        "MptForCausalLM",
        (
            Field("vocab_size", "vocab_size", "size", 50368),
            Field("d_model", "width", "size", 2048, ("hidden_size",)),
            Field("n_layers", "layers", "size", 24, ("num_hidden_layers",)),
            Field("n_heads", "heads", "size", 16, ("num_attention_heads",)),
            HeadDim(),
            Field("max_seq_len", "context", "size", 2048),
            _layer_eps("layer_norm_epsilon"),
            Only("expansion_ratio", 4),
            Only("no_bias", True),
            Only("logit_scale", None),
            MptAttention(),
            _tied(True),
        ),
        {
            "norm": "layer",
            "norm_bias": False,
            "activation": "gelu",
            "feed_forward": _four_widths,
        },
    ),
    "bloom": Family(
        "BloomForCausalLM",
        (
            Field("vocab_size", "vocab_size", "size", 250880),
            Field("hidden_size", "width", "size", 64, ("n_embed",)),
            Field("n_layer", "layers", "size", 2, ("num_hidden_layers",)),
            Field("n_head", "heads", "size", 8, ("num_attention_heads",)),
            HeadDim(),
            # Not read by transformers: attention with linear biases has no limit.
            Field("seq_length", "context", "size", 2048),
            _layer_eps("layer_norm_epsilon"),
            Only("apply_residual_connection_post_layernorm", False),
            Field("attention_dropout", "dropout_attention", "number", 0.0),
            Field("hidden_dropout", "dropout_residual", "number", 0.0),
            _tied(True),
        ),
        {
            **LAYER_BIASES,
            "activation": "gelu_tanh",
            "feed_forward": _four_widths,
            "position": Alibi(),
            "embedding_norm": True,
        },
    ),
    "opt": Family(
        "OPTForCausalLM",
        (
            *_sizes(50272, 768, 12, 12),
            HeadDim(),
            Field("max_position_embeddings", "context", "size", 2048),
            Field("ffn_dim", "feed_forward", "size", 3072),
            Same("word_embed_proj_dim", "width"),
            Field("activation_function", "activation", "activation", "relu"),
            Field(
                "enable_bias",
                ("qkv_bias", "out_bias", "feed_forward_bias"),
                "flag",
                True,
            ),
            Field(
                "layer_norm_elementwise_affine",
                ("norm_scale", "norm_bias"),
                "flag",
                True,
            ),
            Field("attention_dropout", "dropout_attention", "number", 0.0),
            Field("dropout", "dropout_residual", "number", 0.1),
            Only("do_layer_norm_before", True),
            Only("_remove_final_layer_norm", False),
            Only("layerdrop", 0.0),
            _tied(True),
        ),
        {
            "norm": "layer",
            "eps": 1e-5,
            "learned_positions": True,
            "position_offset": 2,
        },
    ),
    "phi": Family(
        "PhiForCausalLM",
        (
            *_sizes(51200, 2048, 24, 32),
            *_modern(2048, 8192, "gelu_new"),
            HeadDim("head_dim"),
            _layer_eps(),
            Field("embd_pdrop", "dropout_embedding", "number", 0.0),
            Field("resid_pdrop", "dropout_residual", "number", 0.0),
            Choice("qk_layernorm", "qk_norm", ((False, None), (True, "layer"))),
            Rope("rope_theta", "partial_rotary_factor", 0.5),
            Only("tie_word_embeddings", False),
        ),
        {**LAYER_BIASES, "head_bias": True, "residual": "parallel_shared_norm"},
    ),
    "olmo": Family(
        "OlmoForCausalLM",
        (
            *_sizes(50304, 4096, 32, 32),
            *_modern(2048, 11008, "silu"),
            HeadDim("head_dim"),
            Field("attention_bias", ("qkv_bias", "out_bias"), "flag", False),
            Field("clip_qkv", "clip_qkv", "optional", None),
            Rope(),
            _tied(False),
        ),
        {
            "norm": "layer",
            "eps": 1e-5,
            "norm_scale": False,
            "norm_bias": False,
            "gated": True,
        },
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        (
            *_sizes(50304, 2560, 32, 32),
            *_modern(4096, 6912, "silu", 32),
            HeadDim(),
            _layer_eps(),
            Field("use_qkv_bias", "qkv_bias", "flag", False),
            Choice(
                "qk_layernorm", "qk_norm", ((False, None), (True, "layer_per_head"))
            ),
            Choice(
                "use_parallel_residual",
                "residual",
                ((False, "sequential"), (True, "parallel_shared_norm")),
            ),
            # Applied after the feed-forward alone; no released model uses it.
            Only("hidden_dropout", 0.0),
            Rope("rope_theta", "partial_rotary_factor", 0.25),
            _tied(False),
        ),
        {"norm": "layer", "gated": True},
    ),
    "mamba": Family(
        "MambaForCausalLM",
        (
            Field("vocab_size", "vocab_size", "size", 50280),
            Field("hidden_size", "width", "size", 768),
            Field("num_hidden_layers", "layers", "size", 32),
            Field("state_size", "state", "size", 16),
            MambaSizes(),
            Field("conv_kernel", "conv_width", "size", 4),
            Field("use_conv_bias", "conv_bias", "flag", True),
            Field("use_bias", "bias", "flag", False),
            Field("hidden_act", "activation", "activation", "silu"),
            Field("layer_norm_epsilon", "eps", "number", 1e-5),
            _tied(True),
        ),
        {"context": 2048},
        assembly.mamba,
    ),
    "rwkv": Family(
        "RwkvForCausalLM",
        (
            Field("vocab_size", "vocab_size", "size", 50277),
            Field("hidden_size", "width", "size", 4096),
            Field("num_hidden_layers", "layers", "size", 32),
            Field("context_length", "context", "size", 1024),
            Field("attention_hidden_size", "inner", "size", lambda s: s["width"]),
            Field("intermediate_size", "feed_forward", "size", _four_widths),
            Field("layer_norm_epsilon", "eps", "number", 1e-5),
            _tied(False),
        ),
        {},
        assembly.rwkv,
    ),
    "recurrent_gemma": Family(
        "RecurrentGemmaForCausalLM",
        (
            *_sizes(256000, 2560, 26, 10),
            Field("num_key_value_heads", "kv_heads", "size", _as_heads),
            HeadDim(),
            Same("head_dim", "head_dim"),
            BlockTypes(),
            HalvedWidth("intermediate_size", lambda s: 3 * s["width"]),
            Field("lru_width", "inner", "size", lambda s: s["width"]),
            Field("attention_window_size", "window", "size", 2048),
            Field("conv1d_width", "conv_width", "size", 4),
            Field("hidden_activation", "activation", "activation", "gelu_pytorch_tanh"),
            Field("logits_soft_cap", "softcap", "number", 30.0),
            Field("attention_bias", "qkv_bias", "flag", False),
            Field("attention_dropout", "dropout_attention", "number", 0.0),
            _rms_eps(),
            Rope("rope_theta", "partial_rotary_factor", 0.5),
            _tied(True),
        ),
        {"context": 8192, "embedding_scale": _griffin_scale},
        assembly.griffin,
    ),
}
"""By the `model_type` of config.json; writing tries them in this order."""
