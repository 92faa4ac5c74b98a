"""Gemma, Gemma 2 and the text models of Gemma 3."""

import math
from typing import Any

from lt_mia_jax.checkpoints import hf_rows as row
from lt_mia_jax.checkpoints.families import family, llama, tensors
from lt_mia_jax.checkpoints.families.family import Family
from lt_mia_jax.checkpoints.hf_fields import Fields, rope_fields
from lt_mia_jax.models.config import Rotary

OFFSET_GATED = {
    "norm": "rms_offset",
    "gated": True,
    "embedding_scale": lambda settings: math.sqrt(settings["width"]),
}


def _sizes(vocab: int, width: int, layers: int, heads: int) -> tuple[row.Row, ...]:
    return (
        *family.sizes(vocab, width, layers, heads),
        family.ATTENTION_DROPOUT,
        row.head_dim("head_dim", 256),
        family.RMS_EPS,
        row.only("use_bidirectional_attention", None, False),
        family.ATTENTION_BIAS,
        family.TIED,
    )


GEMMA = Family(
    "GemmaForCausalLM",
    (
        *_sizes(256000, 3072, 28, 16),
        row.size("max_position_embeddings", "context", 8192),
        row.size("intermediate_size", "feed_forward", 24576),
        row.count("num_key_value_heads", "kv_heads", 16),
        # Released models write "gelu" for the tanh form.
        row.choice(
            "hidden_act",
            "activation",
            ("gelu_pytorch_tanh", "gelu_tanh"),
            ("gelu", "gelu_tanh"),
            ("gelu_new", "gelu_tanh"),
            ("relu", "relu"),
            ("silu", "silu"),
        ),
        row.only("hidden_activation", None, "gelu_pytorch_tanh", None),
        row.rope(),
    ),
    llama.TENSORS,
    OFFSET_GATED,
)


def _read_query_scale(fields: Fields, settings: row.Settings) -> None:
    settings["scale"] = fields.factor("query_pre_attn_scalar", 256.0) ** -0.5


def _write_query_scale(settings: row.Settings) -> dict[str, Any]:
    """The divisor under the root, which is an integer in transformers."""
    scale = settings["scale"] or settings["head_dim"] ** -0.5
    exact = scale**-2
    near = abs(exact - round(exact)) < 1e-6 * exact
    return {"query_pre_attn_scalar": round(exact) if near else exact}


def _windows(every: int, *names: str) -> row.Row:
    """Local layers, of which each `every`-th is not, unless one of `names` says so."""

    def read(fields: Fields, settings: row.Settings) -> None:
        window = fields.size("sliding_window", 4096)
        period = fields.count(fields.first(*names), every) if names else every
        local = llama.read_layer_types(
            fields, settings["layers"], lambda i: (i + 1) % period != 0
        )
        settings["windows"] = row.shortest_period(
            [window if x else None for x in local]
        )

    def write(settings: row.Settings) -> dict[str, Any]:
        found = [w for w in settings["windows"] if w is not None]
        types = llama.write_layer_types(settings)
        return {"sliding_window": (found or [4096])[0], "layer_types": types}

    return row.Row(read, write)


TENSORS = tensors.table(
    llama.NAMES,
    {
        **llama.PROJECTIONS,
        **llama.HEAD_NORMS,
        **llama.GATED_MLP,
        "mixer_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
    ignored=tensors.INV_FREQ,
)


def _newer(context: int) -> tuple[row.Row, ...]:
    """Fields that Gemma 2 and 3 share."""
    return (
        row.size("max_position_embeddings", "context", context),
        row.size("intermediate_size", "feed_forward", 9216),
        row.count("num_key_value_heads", "kv_heads", 4),
        row.activation("hidden_activation", "gelu_pytorch_tanh"),
        # Written by some versions, read by none.
        row.unread("hidden_act", "cache_implementation"),
        row.Row(_read_query_scale, _write_query_scale),
    )


GEMMA2 = Family(
    "Gemma2ForCausalLM",
    (
        *_sizes(256000, 2304, 26, 8),
        *_newer(8192),
        _windows(2),
        row.field("optional", "final_logit_softcapping", "softcap", 30.0),
        row.field("optional", "attn_logit_softcapping", "score_softcap", 50.0),
        row.rope(),
    ),
    TENSORS,
    {**OFFSET_GATED, "norm_place": "both"},
)

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def _read_positions(fields: Fields, settings: row.Settings) -> None:
    """Rotary settings by kind of layer; older files have those of two bases."""
    found = fields.nested("rope_parameters")
    unknown = sorted(set(fields.mapping("rope_parameters")) - {GLOBAL, LOCAL})
    if unknown:
        fields.problems.append(
            f"rope_parameters has {unknown}, expected {[GLOBAL, LOCAL]}"
        )
    # Only layers without a window are scaled.
    wide = {**found.mapping(GLOBAL), **fields.mapping("rope_scaling")}
    wide.setdefault("rope_theta", fields.raw("rope_theta", 1e6))
    near = found.mapping(LOCAL)
    near.setdefault("rope_theta", fields.raw("rope_local_base_freq", 1e4))
    for name, rope in (("position", wide), ("local_position", near)):
        inner = Fields({"rope_parameters": rope})
        settings[name] = inner.rotary("rope_theta", None, 1.0)
        fields.problems += inner.problems


def _write_positions(settings: row.Settings) -> dict[str, Any]:
    wide = settings.get("position")
    near = settings.get("local_position") or wide
    if not (isinstance(wide, Rotary) and isinstance(near, Rotary)):
        return {}
    parameters = {GLOBAL: rope_fields(wide), LOCAL: rope_fields(near)}
    older = {"rope_theta": wide.theta, "rope_local_base_freq": near.theta}
    return {"rope_parameters": parameters, **older}


GEMMA3_TEXT = Family(
    "Gemma3ForCausalLM",
    (
        *_sizes(262208, 2304, 26, 8),
        *_newer(131072),
        _windows(6, "sliding_window_pattern", "_sliding_window_pattern"),
        row.field("optional", "final_logit_softcapping", "softcap", None),
        # Its attention reads no cap.
        row.only("attn_logit_softcapping", None),
        row.Row(_read_positions, _write_positions),
    ),
    TENSORS,
    {**OFFSET_GATED, "norm_place": "both", "qk_norm": "rms_offset"},
)
