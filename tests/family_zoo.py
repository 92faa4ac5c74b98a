"""One tiny config.json a variant of every model_type, flags on and off."""

from typing import Any

COMMON = {"vocab_size": 23, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
WIDE = {
    **SIZES,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "num_key_value_heads": 4,
}
NEOX = {k: v for k, v in WIDE.items() if k != "num_key_value_heads"}
GROUPED = {**WIDE, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}
PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
OPT = {
    **SIZES,
    "ffn_dim": 48,
    "max_position_embeddings": 16,
    "word_embed_proj_dim": 32,
}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 16}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
RWKV = {"hidden_size": 32, "num_hidden_layers": 3, "context_length": 16}
GRIFFIN = {
    **SIZES,
    "num_hidden_layers": 5,
    "intermediate_size": 96,
    "num_key_value_heads": 1,
    "attention_window_size": 4,
}
GEMMA3 = {**GROUPED, "head_dim": 12, "sliding_window": 4}
CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}
WINDOWS = {"use_sliding_window": True, "sliding_window": 3}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-gelu": ("gpt2", {**GPT2, "activation_function": "gelu", "n_inner": 40}),
    "gpt2-relu": ("gpt2", {**GPT2, "activation_function": "relu"}),
    "gpt2-eps": ("gpt2", {**GPT2, "layer_norm_epsilon": 1e-2}),
    "gpt2-by-layer": (
        "gpt2",
        {**GPT2, "n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("llama", WIDE),
    "llama-grouped": ("llama", GROUPED),
    "llama-one-kv-tied": (
        "llama",
        {**WIDE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "llama-biases": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {**WIDE, "head_dim": 12, "rms_norm_eps": 1e-2}),
    "llama-linear": ("llama", {**WIDE, "rope_parameters": LINEAR}),
    "llama-llama3": ("llama", {**WIDE, "rope_parameters": LLAMA3}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox-sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    "gpt_neox-partial": ("gpt_neox", {**NEOX, "rope_parameters": PARTIAL}),
    "gpt_neox-no-bias-tied": (
        "gpt_neox",
        {**NEOX, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gptj-all-rotated": ("gptj", {**GPT2, "rotary_dim": 8, "n_inner": 40}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 4}),
    "mistral-no-window": (
        "mistral",
        {**GROUPED, "sliding_window": None, "head_dim": 12},
    ),
    "qwen2": ("qwen2", GROUPED),
    "qwen2-windows-tied": (
        "qwen2",
        {**GROUPED, **WINDOWS, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2-all-windows": ("qwen2", {**GROUPED, **WINDOWS, "max_window_layers": 0}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 12, "attention_bias": True}),
    "gemma": ("gemma", {**WIDE, "num_key_value_heads": 1, "head_dim": 12}),
    "gemma-old-gelu": ("gemma", {**WIDE, "head_dim": 8, "hidden_act": "gelu"}),
    "gemma2": ("gemma2", {**GEMMA3, **CAPS, "query_pre_attn_scalar": 9}),
    "gemma2-no-caps": (
        "gemma2",
        {
            **GEMMA3,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {**GEMMA3, "num_hidden_layers": 3, "sliding_window_pattern": 2},
    ),
    "gemma3_text-scaled": (
        "gemma3_text",
        {
            **GEMMA3,
            "final_logit_softcapping": 1.5,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "falcon-7b": ("falcon", SIZES),
    "falcon-rw": (
        "falcon",
        {
            **SIZES,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "falcon-new": (
        "falcon",
        {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-one-norm": (
        "falcon",
        {
            **SIZES,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
            "ffn_hidden_size": 40,
        },
    ),
    "mpt": ("mpt", MPT),
    "mpt-clipped-odd-heads": (
        "mpt",
        {
            **MPT,
            "d_model": 30,
            "n_heads": 3,
            "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.2},
        },
    ),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "bloom-odd-heads": ("bloom", {"hidden_size": 30, "n_layer": 2, "n_head": 6}),
    "opt": ("opt", OPT),
    "opt-plain": (
        "opt",
        {
            **OPT,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
        },
    ),
    "opt-post-norm": (
        "opt",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12},
    ),
    "opt-no-final-norm": (
        "opt",
        {
            **OPT,
            "_remove_final_layer_norm": True,
            "word_embed_proj_dim": 40,
            "tie_word_embeddings": False,
        },
    ),
    "phi": ("phi", WIDE),
    "phi-norms": ("phi", {**GROUPED, "qk_layernorm": True}),
    "olmo": ("olmo", WIDE),
    "olmo-clipped": ("olmo", {**GROUPED, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", GROUPED),
    "olmo2-tied": (
        "olmo2",
        {
            **WIDE,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-2,
        },
    ),
    "stablelm": ("stablelm", {**WIDE, "partial_rotary_factor": 0.5}),
    "stablelm-all": (
        "stablelm",
        {
            **GROUPED,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
    ),
    "mamba": ("mamba", MAMBA),
    "mamba-biases": (
        "mamba",
        {
            **MAMBA,
            "use_bias": True,
            "use_conv_bias": False,
            "time_step_rank": 5,
            "tie_word_embeddings": False,
            "conv_kernel": 3,
            "expand": 1,
        },
    ),
    "rwkv": ("rwkv", RWKV),
    "rwkv-narrow": (
        "rwkv",
        {
            **RWKV,
            "attention_hidden_size": 24,
            "intermediate_size": 40,
            "layer_norm_epsilon": 1e-2,
            "rescale_every": 0,
        },
    ),
    "recurrent_gemma": ("recurrent_gemma", GRIFFIN),
    "recurrent_gemma-biases": (
        "recurrent_gemma",
        {
            **GRIFFIN,
            "num_hidden_layers": 2,
            "block_types": ["attention", "recurrent"],
            "attention_bias": True,
            "num_key_value_heads": 2,
            "conv1d_width": 3,
            "logits_soft_cap": 2.0,
        },
    ),
}

FAMILIES = sorted({kind for kind, _ in VARIANTS.values()})
"""Every model_type; each is also the name of its plainest variant."""

PLAIN = {kind: kind if kind in VARIANTS else f"{kind}-7b" for kind in FAMILIES}
"""One variant of each model_type."""


def config_json(name: str) -> dict[str, Any]:
    """What the variant's config.json holds."""
    kind, fields = VARIANTS[name]
    return {"model_type": kind, **COMMON, **fields}
