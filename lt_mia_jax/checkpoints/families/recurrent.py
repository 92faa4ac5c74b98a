"""Recurrent models: Mamba, RWKV-4, RecurrentGemma."""

from typing import Any

from lt_mia_jax.checkpoints import hf_rows as row
from lt_mia_jax.checkpoints.families import family, tensors
from lt_mia_jax.checkpoints.families.family import Family
from lt_mia_jax.checkpoints.hf_fields import MOST, Fields
from lt_mia_jax.checkpoints.transforms import COPY, DEPTHWISE, FLAT, LINEAR
from lt_mia_jax.models import assembly
from lt_mia_jax.models.config import Attention, RgLru


def _read_mamba_sizes(fields: Fields, settings: row.Settings) -> None:
    """Inner width as a multiple of the width, and rank of the time steps."""
    settings["inner"] = fields.size("expand", 2) * settings["width"]
    stored = fields.raw("intermediate_size", settings["inner"])
    if stored != settings["inner"]:
        fields.problems.append(
            f"intermediate_size = {stored!r}, expected expand x hidden_size = "
            f"{settings['inner']}"
        )
    if fields.raw("time_step_rank", "auto") == "auto":
        settings["step_rank"] = -(-settings["width"] // 16)
    else:
        settings["step_rank"] = fields.size("time_step_rank", 1)


def _write_mamba_sizes(settings: row.Settings) -> dict[str, Any]:
    """Both fields; none if the inner width is not a multiple."""
    expand, rest = divmod(settings["inner"], settings["width"])
    if rest:
        return {}
    return {"expand": expand, "time_step_rank": settings["step_rank"]}


MAMBA = Family(
    "MambaForCausalLM",
    (
        *family.sizes(50280, 768, 32, 0)[:3],
        row.size("state_size", "state", 16),
        row.Row(_read_mamba_sizes, _write_mamba_sizes),
        row.count("conv_kernel", "conv_width", 4),
        row.flag("use_conv_bias", "conv_bias", True),
        row.flag("use_bias", "bias", False),
        row.activation("hidden_act", "silu"),
        family.layer_eps("layer_norm_epsilon"),
        family.TIED,
    ),
    tensors.table(
        ("backbone.", "embeddings", "norm_f", "layers.{i}."),
        {
            "mixer_norm": "norm",
            "mixer/input": "mixer.in_proj",
            "mixer/select": "mixer.x_proj",
            "mixer/output": "mixer.out_proj",
            "mixer/conv/taps": ("mixer.conv1d.weight", DEPTHWISE),
            "mixer/conv/bias": ("mixer.conv1d.bias", COPY),
            "mixer/step/up/kernel": ("mixer.dt_proj.weight", LINEAR),
            "mixer/step/bias": ("mixer.dt_proj.bias", COPY),
            "mixer/log_decay": ("mixer.A_log", COPY),
            "mixer/skip": ("mixer.D", COPY),
        },
    ),
    {"context": 2048},
    assembly.mamba,
)

RWKV = Family(
    "RwkvForCausalLM",
    (
        *family.sizes(50277, 4096, 32, 0)[:3],
        row.size("context_length", "context", 1024),
        row.size("attention_hidden_size", "inner", family.width),
        row.size("intermediate_size", "feed_forward", family.four_widths),
        family.layer_eps("layer_norm_epsilon"),
        family.UNTIED,
    ),
    tensors.table(
        ("rwkv.", "embeddings", "ln_out", "blocks.{i}."),
        {
            "mixer_norm": "ln1",
            "feed_forward_norm": "ln2",
            "mixer/decay": ("attention.time_decay", COPY),
            "mixer/bonus": ("attention.time_first", COPY),
            "mixer/mix_key": ("attention.time_mix_key", FLAT),
            "mixer/mix_value": ("attention.time_mix_value", FLAT),
            "mixer/mix_receptance": ("attention.time_mix_receptance", FLAT),
            "feed_forward/mix_key": ("feed_forward.time_mix_key", FLAT),
            "feed_forward/mix_receptance": ("feed_forward.time_mix_receptance", FLAT),
            "mixer/key": "attention.key",
            "mixer/value": "attention.value",
            "mixer/receptance": "attention.receptance",
            "mixer/output": "attention.output",
            "feed_forward/key": "feed_forward.key",
            "feed_forward/receptance": "feed_forward.receptance",
            "feed_forward/value": "feed_forward.value",
        },
        heads=("head.weight",),
        # The embedding's norm is stored with the first layer.
        extra={"embedding_norm": "blocks.0.pre_ln"},
    ),
    {},
    assembly.rwkv,
)

KINDS = ("recurrent", "recurrent", "attention")
_UNIT = "temporal_block.rg_lru"


def _read_kinds(fields: Fields, settings: row.Settings) -> None:
    """The kinds of mixer, repeated over the layers."""
    kinds = fields.raw(fields.first("block_types", "_block_types"), list(KINDS))
    good = isinstance(kinds, list) and kinds and all(kind in KINDS for kind in kinds)
    if not good or len(kinds) > MOST:
        fields.problems.append(
            f"block_types = {repr(kinds)[:60]}, implemented are {sorted(set(KINDS))}"
        )
        kinds = KINDS
    settings["kinds"] = row.shortest_period(kinds)


def _read_doubled(fields: Fields, settings: row.Settings) -> None:
    """The stored feed-forward width is twice ours."""
    doubled = fields.size("intermediate_size", 3 * settings["width"])
    if doubled % 2:
        fields.problems.append(
            f"intermediate_size = {doubled}, expected an even number"
        )
    settings["feed_forward"] = max(doubled // 2, 1)


RECURRENT_GEMMA = Family(
    "RecurrentGemmaForCausalLM",
    (
        *family.sizes(256000, 2560, 26, 10),
        row.count("num_key_value_heads", "kv_heads", family.as_heads),
        row.head_dim(),
        row.same("head_dim", "head_dim"),
        row.Row(_read_kinds, lambda settings: {"block_types": list(settings["kinds"])}),
        row.Row(
            _read_doubled,
            lambda settings: {"intermediate_size": 2 * settings["feed_forward"]},
        ),
        row.size("lru_width", "inner", family.width),
        row.size("attention_window_size", "window", 2048),
        row.count("conv1d_width", "conv_width", 4),
        row.activation("hidden_activation", "gelu_pytorch_tanh"),
        row.factor("logits_soft_cap", "softcap", 30.0),
        row.flag("attention_bias", "qkv_bias", False),
        family.ATTENTION_DROPOUT,
        family.RMS_EPS,
        row.rope("rope_theta", "partial_rotary_factor", 0.5),
        family.TIED,
    ),
    tensors.table(
        ("model.", "embed_tokens", "final_norm", "layers.{i}."),
        (
            *tensors.rules(
                {
                    "mixer_norm": "temporal_pre_norm",
                    "feed_forward_norm": "channel_pre_norm",
                    "feed_forward/gate": "mlp_block.gate_proj",
                    "feed_forward/up": "mlp_block.up_proj",
                    "feed_forward/down": "mlp_block.down_proj",
                }
            ),
            # Both kinds of mixer are stored as `temporal_block`.
            *tensors.rules(
                tensors.attention("temporal_block.{}_proj", "temporal_block.o_proj"),
                mixer=Attention,
            ),
            *tensors.rules(
                {
                    "mixer/gate": "temporal_block.linear_y",
                    "mixer/input": "temporal_block.linear_x",
                    "mixer/output": "temporal_block.linear_out",
                    "mixer/conv/taps": ("temporal_block.conv_1d.weight", DEPTHWISE),
                    "mixer/conv/bias": ("temporal_block.conv_1d.bias", COPY),
                    "mixer/recurrence/decay": (f"{_UNIT}.recurrent_param", COPY),
                    **{
                        f"mixer/recurrence/{ours}_gate/{leaf}": (
                            f"{_UNIT}.{theirs}_gate_{part}",
                            COPY,
                        )
                        for theirs, ours in (("input", "input"), ("recurrent", "decay"))
                        for part, leaf in (("weight", "blocks"), ("bias", "bias"))
                    },
                },
                mixer=RgLru,
            ),
        ),
        ignored=tensors.INV_FREQ,
    ),
    {
        "context": 8192,
        "embedding_scale": lambda settings: assembly.bfloat16_root(settings["width"]),
    },
    assembly.griffin,
)
