"""Families with linear attention biases: BLOOM, MPT, and some Falcons."""

from typing import Any

from lt_mia_jax.checkpoints import hf_rows as row
from lt_mia_jax.checkpoints.families import family, tensors
from lt_mia_jax.checkpoints.families.family import Family
from lt_mia_jax.checkpoints.hf_fields import Fields
from lt_mia_jax.checkpoints.rules import Table
from lt_mia_jax.checkpoints.transforms import split_grouped
from lt_mia_jax.models.config import Alibi, ModelConfig, Residual

NAMES = ("transformer.", "word_embeddings", "ln_f", "h.{i}.")


def _falcon_tensors(config: ModelConfig) -> Table:
    parallel = config.pattern[0].residual is Residual.PARALLEL
    return tensors.grouped(
        config,
        NAMES,
        ("ln_attn", "ln_mlp") if parallel else tensors.NORMS,
        ignored=(*tensors.INV_FREQ, "*.maybe_rotary.inv_freq"),
    )


def _read_layout(fields: Fields, settings: row.Settings) -> None:
    """Falcon's three generations, told apart by flags."""
    new = fields.flag("new_decoder_architecture", False)
    multi_query = fields.flag("multi_query", True)
    parallel = fields.flag("parallel_attn", True)
    heads = settings["heads"]
    groups = fields.size("num_kv_heads", heads)
    norms = fields.raw("num_ln_in_parallel_attn", 2 if new else 1)
    if new and not parallel:
        fields.problems.append(
            "parallel_attn = False with new_decoder_architecture is not implemented"
        )
    if norms not in (1, 2) or (norms == 2 and not new):
        fields.problems.append(f"num_ln_in_parallel_attn = {norms!r}")
    settings["kv_heads"] = groups if new else 1 if multi_query else heads
    if parallel:
        settings["residual"] = "parallel" if norms == 2 else "parallel_shared_norm"
    else:
        settings["residual"] = "sequential"
    if fields.flag("alibi", False):
        settings["position"] = Alibi(before_scaling=True, bfloat16=True)
    else:
        row.rope().read(fields, settings)


def _write_layout(settings: row.Settings) -> dict[str, Any]:
    """Flags of the oldest generation that can express the model."""
    residual, groups = settings["residual"], settings["kv_heads"]
    new = residual == "parallel"
    new |= residual == "parallel_shared_norm" and groups != 1
    return {
        "new_decoder_architecture": new,
        "multi_query": groups == 1,
        "parallel_attn": residual != "sequential",
        "num_kv_heads": groups,
        "num_ln_in_parallel_attn": 2 if residual == "parallel" else 1,
        "alibi": isinstance(settings["position"], Alibi),
        **row.rope().write(settings),
    }


FALCON = Family(
    "FalconForCausalLM",
    (
        row.size("vocab_size", "vocab_size", 65024),
        row.size("hidden_size", "width", 4544, "n_embed"),
        row.count("num_hidden_layers", "layers", 32, "n_layer"),
        row.count("num_attention_heads", "heads", 71, "n_head"),
        row.head_dim(),
        row.size("max_position_embeddings", "context", 2048),
        row.size("ffn_hidden_size", "feed_forward", family.four_widths),
        row.activation("activation", "gelu"),
        family.layer_eps("layer_norm_epsilon"),
        row.flag("bias", family.ALL_BIASES, False),
        # Applied at other places; no released model uses them.
        row.only("hidden_dropout", 0.0),
        row.only("attention_dropout", 0.0),
        row.Row(_read_layout, _write_layout),
        family.TIED,
    ),
    _falcon_tensors,
    {"norm": "layer"},
)


def _read_attn_config(fields: Fields, settings: row.Settings) -> None:
    nested = fields.nested("attn_config")
    for name, only in (
        ("attn_type", "multihead_attention"),
        ("prefix_lm", False),
        ("qk_ln", False),
        ("alibi", True),
        ("attn_uses_sequence_id", False),
        # transformers ignores it and computes with 8.
        ("alibi_bias_max", 8),
    ):
        nested.require(name, only, only)
    settings["scale"] = nested.optional("softmax_scale", None)
    settings["clip_qkv"] = nested.optional("clip_qkv", None) or None
    settings["position"] = Alibi()
    rate = nested.number("attn_pdrop", 0.0)
    settings["dropout_attention"] = settings["dropout_residual"] = rate


def _write_attn_config(settings: row.Settings) -> dict[str, Any]:
    position, rate = settings["position"], settings["dropout_attention"]
    if not isinstance(position, Alibi):
        return {}
    return {
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_type": "multihead_attention",
            "clip_qkv": settings["clip_qkv"],
            "softmax_scale": settings["scale"],
            # Declared an integer in transformers, which refuses 0.0.
            "attn_pdrop": int(rate) if rate == int(rate) else rate,
        }
    }


MPT = Family(
    "MptForCausalLM",
    (
        row.size("vocab_size", "vocab_size", 50368),
        row.size("d_model", "width", 2048, "hidden_size"),
        row.count("n_layers", "layers", 24, "num_hidden_layers"),
        row.count("n_heads", "heads", 16, "num_attention_heads"),
        row.head_dim(),
        row.size("max_seq_len", "context", 2048),
        family.layer_eps("layer_norm_epsilon"),
        row.only("expansion_ratio", 4),
        row.only("no_bias", True),
        row.only("logit_scale", None),
        row.Row(_read_attn_config, _write_attn_config),
        family.TIED,
    ),
    tensors.table(
        ("transformer.", "wte", "norm_f", "blocks.{i}."),
        {
            "mixer_norm": "norm_1",
            "mixer/qkv": "attn.Wqkv",
            "mixer/output": "attn.out_proj",
            "feed_forward_norm": "norm_2",
            "feed_forward/up": "ffn.up_proj",
            "feed_forward/down": "ffn.down_proj",
        },
        fused=split_grouped(1),
    ),
    {
        "norm": "layer",
        "norm_bias": False,
        "activation": "gelu",
        "feed_forward": family.four_widths,
    },
)


def _bloom_tensors(config: ModelConfig) -> Table:
    extra = {"embedding_norm": "word_embeddings_layernorm"}
    return tensors.grouped(config, NAMES, extra=extra)


BLOOM = Family(
    "BloomForCausalLM",
    (
        row.size("vocab_size", "vocab_size", 250880),
        row.size("hidden_size", "width", 64, "n_embed"),
        row.count("n_layer", "layers", 2, "num_hidden_layers"),
        row.count("n_head", "heads", 8, "num_attention_heads"),
        row.head_dim(),
        # Not read by transformers: attention with linear biases has no limit.
        row.size("seq_length", "context", 2048),
        family.layer_eps("layer_norm_epsilon"),
        row.only("apply_residual_connection_post_layernorm", False),
        family.ATTENTION_DROPOUT,
        row.number("hidden_dropout", "dropout_residual", 0.0),
        family.TIED,
    ),
    _bloom_tensors,
    {
        **family.LAYER_BIASES,
        "activation": "gelu_tanh",
        "feed_forward": family.four_widths,
        "position": Alibi(),
        "embedding_norm": True,
    },
)
