"""Llama and its descendants."""

from collections.abc import Callable
from typing import Any

from lt_mia_jax.checkpoints import hf_rows as row
from lt_mia_jax.checkpoints.families import family, tensors
from lt_mia_jax.checkpoints.families.family import Family
from lt_mia_jax.checkpoints.hf_fields import Fields
from lt_mia_jax.checkpoints.transforms import COPY

PROJECTIONS = {
    "mixer_norm": "input_layernorm",
    **tensors.attention("self_attn.{}_proj", "self_attn.o_proj"),
}
HEAD_NORMS = {
    "mixer/query_norm": "self_attn.q_norm",
    "mixer/key_norm": "self_attn.k_norm",
}
GATED_MLP = {
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/gate": "mlp.gate_proj",
    "feed_forward/up": "mlp.up_proj",
    "feed_forward/down": "mlp.down_proj",
}
NAMES = ("model.", "embed_tokens", "norm", "layers.{i}.")
TENSORS = tensors.table(
    NAMES, {**PROJECTIONS, **HEAD_NORMS, **GATED_MLP}, ignored=tensors.INV_FREQ
)

LLAMA = Family(
    "LlamaForCausalLM",
    (
        *family.sizes(32000, 4096, 32, 32),
        *family.modern(2048, 11008, "silu"),
        row.head_dim("head_dim"),
        family.RMS_EPS,
        family.ATTENTION_BIAS,
        row.flag("mlp_bias", "feed_forward_bias", False),
        row.rope(),
        family.UNTIED,
    ),
    TENSORS,
    family.RMS_GATED,
)


MISTRAL = Family(
    "MistralForCausalLM",
    (
        *family.sizes(32000, 4096, 32, 32),
        *family.modern(4096 * 32, 14336, "silu", 8),
        row.head_dim("head_dim"),
        family.RMS_EPS,
        row.Row(
            lambda fields, settings: settings.update(
                windows=(fields.optional_size("sliding_window", 4096),)
            ),
            lambda settings: {"sliding_window": settings["windows"][0]},
        ),
        row.rope(),
        family.UNTIED,
    ),
    TENSORS,
    family.RMS_GATED,
)


def read_layer_types(
    fields: Fields, layers: int, default: Callable[[int], bool]
) -> list[bool]:
    """Whether each layer is local: from `layer_types`, or else by its number from 0."""
    names = fields.raw("layer_types", None)
    if names is None:
        return [default(i) for i in range(layers)]
    known = {"full_attention": False, "sliding_attention": True}
    good = isinstance(names, list) and all(n in [*known] for n in names)
    if not good or len(names) != layers:
        fields.problems.append(
            f"layer_types = {repr(names)[:60]}, expected {layers} of {sorted(known)}"
        )
        return [False] * layers
    return [known[name] for name in names]


def write_layer_types(settings: row.Settings) -> list[str]:
    """The value of `layer_types`."""
    windows = settings["windows"]
    names = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return [names[i % len(names)] for i in range(settings["layers"])]


def _read_layer_windows(fields: Fields, settings: row.Settings) -> None:
    """Read `layer_types`, or else `max_window_layers`."""
    window = fields.optional_size("sliding_window", 4096)
    used = fields.flag("use_sliding_window", False)
    first = fields.number("max_window_layers", 28.0)
    local = read_layer_types(fields, settings["layers"], lambda i: i >= first)
    every = [window if used and each else None for each in local]
    settings["windows"] = row.shortest_period(every)


def _write_layer_windows(settings: row.Settings) -> dict[str, Any]:
    """All four fields, for all versions of transformers."""
    windows, layers = settings["windows"], settings["layers"]
    every = [windows[i % len(windows)] for i in range(layers)]
    widths = sorted({w for w in every if w is not None})
    first = next((i for i, w in enumerate(every) if w is not None), layers)
    return {
        "use_sliding_window": bool(widths),
        "sliding_window": widths[0] if widths else None,
        "max_window_layers": first,
        "layer_types": write_layer_types(settings),
    }


LAYER_WINDOWS = row.Row(_read_layer_windows, _write_layer_windows)

QWEN2 = Family(
    "Qwen2ForCausalLM",
    (
        *family.sizes(151936, 4096, 32, 32),
        *family.modern(32768, 22016, "silu", 32),
        row.head_dim("head_dim"),
        family.RMS_EPS,
        LAYER_WINDOWS,
        row.rope(),
        family.UNTIED,
    ),
    TENSORS,
    {**family.RMS_GATED, "qkv_bias": True},
)

QWEN3 = Family(
    "Qwen3ForCausalLM",
    (
        *family.sizes(151936, 4096, 32, 32),
        *family.modern(32768, 22016, "silu", 32),
        row.head_dim("head_dim", 128),
        family.RMS_EPS,
        family.ATTENTION_BIAS,
        LAYER_WINDOWS,
        row.rope(),
        family.UNTIED,
    ),
    TENSORS,
    {**family.RMS_GATED, "qk_norm": "rms"},
)

PHI = Family(
    "PhiForCausalLM",
    (
        *family.sizes(51200, 2048, 24, 32),
        *family.modern(2048, 8192, "gelu_new"),
        row.head_dim("head_dim"),
        family.layer_eps(),
        row.number("embd_pdrop", "dropout_embedding", 0.0),
        row.number("resid_pdrop", "dropout_residual", 0.0),
        row.choice("qk_layernorm", "qk_norm", (False, None), (True, "layer")),
        row.rope("rope_theta", "partial_rotary_factor", 0.5),
        row.only("tie_word_embeddings", False),
    ),
    tensors.table(
        ("model.", "embed_tokens", "final_layernorm", "layers.{i}."),
        {
            "mixer_norm": "input_layernorm",
            **tensors.attention("self_attn.{}_proj", "self_attn.dense"),
            "mixer/query_norm": "self_attn.q_layernorm",
            "mixer/key_norm": "self_attn.k_layernorm",
            "feed_forward/up": "mlp.fc1",
            "feed_forward/down": "mlp.fc2",
        },
        ignored=tensors.INV_FREQ,
    ),
    {**family.LAYER_BIASES, "head_bias": True, "residual": "parallel_shared_norm"},
)

NATIVE_OLMO = ("d_model", "n_heads", "n_layers", "mlp_ratio", "mlp_hidden_size")
"""Sizes in the config.json of OLMo's own training code."""


def _refuse_native(fields: Fields, settings: row.Settings) -> None:
    """Refuse names of another format, which transformers would replace by defaults."""
    found = [name for name in NATIVE_OLMO if fields.raw(name) is not None]
    if found:
        fields.problems.append(
            f"{', '.join(found)} are fields of OLMo's own format; get the -hf form of "
            "the model, such as allenai/OLMo-1B-hf"
        )


OLMO = Family(
    "OlmoForCausalLM",
    (
        row.Row(_refuse_native, lambda settings: {}),
        *family.sizes(50304, 4096, 32, 32),
        *family.modern(2048, 11008, "silu"),
        row.head_dim("head_dim"),
        family.ATTENTION_BIAS,
        row.field("optional", "clip_qkv", "clip_qkv", None),
        row.rope(),
        family.UNTIED,
    ),
    TENSORS,
    {
        "norm": "layer",
        "eps": 1e-5,
        "norm_scale": False,
        "norm_bias": False,
        "gated": True,
    },
)

OLMO2 = Family(
    "Olmo2ForCausalLM",
    (
        row.Row(_refuse_native, lambda settings: {}),
        *family.sizes(50304, 4096, 32, 32),
        *family.modern(2048, 11008, "silu"),
        row.head_dim("head_dim"),
        row.epsilon("rms_norm_eps", "eps", 1e-5),
        family.ATTENTION_BIAS,
        row.rope(),
        family.UNTIED,
    ),
    tensors.table(
        NAMES,
        {
            **PROJECTIONS,
            **HEAD_NORMS,
            **GATED_MLP,
            "mixer_output_norm": "post_attention_layernorm",
            "feed_forward_output_norm": "post_feedforward_layernorm",
        },
        ignored=tensors.INV_FREQ,
    ),
    {**family.RMS_GATED, "qk_norm": "rms_joint", "norm_place": "output"},
)

STABLELM = Family(
    "StableLmForCausalLM",
    (
        *family.sizes(50304, 2560, 32, 32),
        *family.modern(4096, 6912, "silu", 32),
        row.head_dim(),
        family.layer_eps(),
        row.flag("use_qkv_bias", "qkv_bias", False),
        row.choice("qk_layernorm", "qk_norm", (False, None), (True, "layer_per_head")),
        row.choice(
            "use_parallel_residual",
            "residual",
            (False, "sequential"),
            (True, "parallel_shared_norm"),
        ),
        # Applied after the feed-forward alone; no released model uses it.
        row.only("hidden_dropout", 0.0),
        row.rope("rope_theta", "partial_rotary_factor", 0.25),
        family.UNTIED,
    ),
    tensors.table(
        NAMES,
        {
            **PROJECTIONS,
            **GATED_MLP,
            # One norm for every head.
            "mixer/query_norm/scale": ("self_attn.q_layernorm.norms.{h}.weight", COPY),
            "mixer/key_norm/scale": ("self_attn.k_layernorm.norms.{h}.weight", COPY),
        },
        ignored=tensors.INV_FREQ,
    ),
    {"norm": "layer", "gated": True},
)
