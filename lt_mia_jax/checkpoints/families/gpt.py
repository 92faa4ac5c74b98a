"""GPT-2 and those that kept its layer norms and biases: GPT-J, GPT-NeoX, OPT."""

from typing import Any

from lt_mia_jax.checkpoints import hf_rows as row
from lt_mia_jax.checkpoints.families import family, tensors
from lt_mia_jax.checkpoints.families.family import Family
from lt_mia_jax.checkpoints.hf_fields import Fields
from lt_mia_jax.checkpoints.rules import Table
from lt_mia_jax.checkpoints.transforms import COPY, split_chunks
from lt_mia_jax.models.config import ModelConfig, Rotary


def _openai(vocab: int, width: int, layers: int, heads: int) -> tuple[row.Row, ...]:
    """Fields that GPT-2 and GPT-J share."""
    return (
        row.size("vocab_size", "vocab_size", vocab),
        row.size("n_embd", "width", width, "hidden_size"),
        row.count("n_layer", "layers", layers, "num_hidden_layers"),
        row.count("n_head", "heads", heads, "num_attention_heads"),
        row.head_dim(),
        row.size("n_inner", "feed_forward", family.four_widths),
        row.activation("activation_function", "gelu_new"),
        family.layer_eps("layer_norm_epsilon"),
    )


def _dropouts(default: float) -> tuple[row.Row, ...]:
    return (
        row.number("embd_pdrop", "dropout_embedding", default),
        row.number("attn_pdrop", "dropout_attention", default),
        row.number("resid_pdrop", "dropout_residual", default),
    )


GPT2 = Family(
    "GPT2LMHeadModel",
    (
        *_openai(50257, 768, 12, 12),
        row.size("n_positions", "context", 1024, "max_position_embeddings"),
        *_dropouts(0.1),
        row.only("scale_attn_weights", True),
        row.flag("scale_attn_by_inverse_layer_idx", "scale_by_layer", False),
        row.only("add_cross_attention", False),
        # Only the order of scaling and the precision of the scores.
        row.only("reorder_and_upcast_attn", False, True),
        family.TIED,
    ),
    tensors.table(
        ("transformer.", "wte", "ln_f", "h.{i}."),
        # Every matrix is stored (in, out).
        {
            "mixer_norm": "ln_1",
            "mixer/qkv": "attn.c_attn",
            "mixer/output": "attn.c_proj",
            "feed_forward_norm": "ln_2",
            "feed_forward/up": "mlp.c_fc",
            "feed_forward/down": "mlp.c_proj",
        },
        fused=split_chunks(3),
        kernel=COPY,
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        extra={"embedding/positions": ("wpe.weight", COPY)},
    ),
    {**family.LAYER_BIASES, "learned_positions": True},
)


def _read_rotary_dim(fields: Fields, settings: row.Settings) -> None:
    share = fields.size("rotary_dim", 64) / settings["head_dim"]
    settings["position"] = Rotary(fraction=share, interleaved=True)


def _write_rotary_dim(settings: row.Settings) -> dict[str, Any]:
    rotary = settings["position"]
    if not isinstance(rotary, Rotary):
        return {}
    return {"rotary_dim": round(rotary.fraction * settings["head_dim"])}


GPTJ = Family(
    "GPTJForCausalLM",
    (
        *_openai(50400, 4096, 28, 16),
        row.size("n_positions", "context", 2048, "max_position_embeddings"),
        *_dropouts(0.0),
        row.Row(_read_rotary_dim, _write_rotary_dim),
        row.only("tie_word_embeddings", False),
    ),
    tensors.table(
        ("transformer.", "wte", "ln_f", "h.{i}."),
        {
            "mixer_norm": "ln_1",
            **tensors.attention("attn.{}_proj", "attn.out_proj"),
            "feed_forward/up": "mlp.fc_in",
            "feed_forward/down": "mlp.fc_out",
        },
        ignored=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
    ),
    {
        "norm": "layer",
        "feed_forward_bias": True,
        "head_bias": True,
        "residual": "parallel_shared_norm",
    },
)


def _neox_tensors(config: ModelConfig) -> Table:
    return tensors.grouped(
        config,
        ("gpt_neox.", "embed_in", "final_layer_norm", "layers.{i}."),
        attention="attention",
        heads=("embed_out.weight", "lm_head.weight"),
        ignored=("*.attention.bias", "*.attention.masked_bias", *tensors.INV_FREQ),
    )


GPT_NEOX = Family(
    "GPTNeoXForCausalLM",
    (
        *family.sizes(50432, 6144, 44, 64),
        row.head_dim(),
        row.size("max_position_embeddings", "context", 2048),
        row.size("intermediate_size", "feed_forward", 24576),
        row.activation("hidden_act", "gelu"),
        family.layer_eps(),
        row.flag("attention_bias", family.BIASES, True),
        row.choice(
            "use_parallel_residual",
            "residual",
            (True, "parallel"),
            (False, "sequential"),
        ),
        family.ATTENTION_DROPOUT,
        row.number("hidden_dropout", ("dropout_residual", "dropout_embedding"), 0.0),
        row.rope("rotary_emb_base", "rotary_pct", 0.25),
        family.UNTIED,
    ),
    _neox_tensors,
    {"norm": "layer", "feed_forward_bias": True},
)


def _read_norms(fields: Fields, settings: row.Settings) -> None:
    """Pre-norm, or post-norm, which has no norm after the last block."""
    before = fields.flag("do_layer_norm_before", True)
    removed = fields.flag("_remove_final_layer_norm", False)
    settings["norm_place"] = "input" if before else "sum"
    settings["final_norm"] = before and not removed


def _write_norms(settings: row.Settings) -> dict[str, Any]:
    before = {"input": True, "sum": False}[settings["norm_place"]]
    return {
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not settings["final_norm"],
    }


def _read_word_width(fields: Fields, settings: row.Settings) -> None:
    found = fields.size("word_embed_proj_dim", settings["width"])
    settings["embedding_width"] = None if found == settings["width"] else found


OPT = Family(
    "OPTForCausalLM",
    (
        *family.sizes(50272, 768, 12, 12),
        row.head_dim(),
        row.size("max_position_embeddings", "context", 2048),
        row.size("ffn_dim", "feed_forward", 3072),
        row.Row(
            _read_word_width,
            lambda settings: {
                "word_embed_proj_dim": settings["embedding_width"] or settings["width"]
            },
        ),
        row.activation("activation_function", "relu"),
        row.flag("enable_bias", family.ALL_BIASES, True),
        row.flag("layer_norm_elementwise_affine", ("norm_scale", "norm_bias"), True),
        family.ATTENTION_DROPOUT,
        row.number("dropout", "dropout_residual", 0.1),
        row.Row(_read_norms, _write_norms),
        row.only("layerdrop", 0.0),
        family.TIED,
    ),
    tensors.table(
        (
            "model.",
            "decoder.embed_tokens",
            "decoder.final_layer_norm",
            "decoder.layers.{i}.",
        ),
        {
            "mixer_norm": "self_attn_layer_norm",
            **tensors.attention("self_attn.{}_proj", "self_attn.out_proj"),
            "feed_forward_norm": "final_layer_norm",
            "feed_forward/up": "fc1",
            "feed_forward/down": "fc2",
        },
        extra={
            "embedding/positions": ("decoder.embed_positions.weight", COPY),
            "embedding_projection": "decoder.project_in",
            "head_projection": "decoder.project_out",
        },
    ),
    {"norm": "layer", "eps": 1e-5, "learned_positions": True, "position_offset": 2},
)
