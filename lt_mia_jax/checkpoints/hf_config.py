"""config.json of Hugging Face to `ModelConfig` and back: one reader, one writer each.

Readers work on the raw file, because field names change between versions of
transformers, and refuse every value that would change the logits and that we do not
implement. Writers return None for a config that their family cannot express.
"""

from collections.abc import Mapping
from typing import Any

from lt_mia_jax.checkpoints.hf_fields import ACTIVATION_NAMES, Fields, rope_fields
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import (
    Attention,
    BlockConfig,
    Dropout,
    Embedding,
    Learned,
    Mlp,
    ModelConfig,
    Norm,
    Residual,
    Rotary,
    Tied,
    Untied,
)


def read_config(data: Any, where: str) -> ModelConfig:
    """The model that the content of a config.json describes.

    Args:
      data: the parsed file.
      where: its name, for messages.

    Raises:
      InputError: an unknown `model_type`, or field values that are wrong or not
        implemented; all of them are listed.
    """
    kind = data.get("model_type") if isinstance(data, Mapping) else None
    if kind not in FAMILIES:
        raise InputError(
            f"{where}: model_type is {kind!r}, supported are {sorted(FAMILIES)}; check "
            "that this is the config.json of a causal language model"
        )
    fields = Fields(data)
    reader, _ = FAMILIES[kind]
    try:
        config = reader(fields)
    except InputError as error:
        fields.problems.append(str(error))
        config = None
    fields.finish(where)
    assert config is not None
    return config


def write_config(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The `model_type` that expresses a model, and its config.json content.

    Raises:
      InputError: no supported family can express it.
    """
    for kind, (_, writer) in FAMILIES.items():
        data = writer(config)
        if data is None:
            continue
        data = {"model_type": kind, **data}
        try:
            same = read_config(data, "config.json") == config
        except InputError:
            same = False  # This family cannot say it; another one may.
        if same:
            return kind, data
    raise InputError(
        f"no supported model_type of {sorted(FAMILIES)} can express this model; "
        "choose settings of one family, as the presets do"
    )


def _read_gpt2(fields: Fields) -> ModelConfig:
    width, heads = fields.size("n_embd", 768), fields.size("n_head", 12)
    context = fields.size("n_positions", 1024)
    norm = Norm(kind="layer", eps=fields.number("layer_norm_epsilon", 1e-5))
    fields.require("scale_attn_weights", True, True)
    fields.require("scale_attn_by_inverse_layer_idx", False, False)
    fields.require("add_cross_attention", False, False)
    # Only the order of scaling and the precision of the scores, which is float32 here.
    fields.flag("reorder_and_upcast_attn", False)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=fields.head_dim(width, heads),
            qkv_bias=True,
            out_bias=True,
        ),
        feed_forward=Mlp(
            width=fields.size("n_inner", 4 * width),
            activation=fields.activation("activation_function", "gelu_new"),
        ),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=fields.size("vocab_size", 50257),
        width=width,
        layers=fields.size("n_layer", 12),
        pattern=(block,),
        embedding=Embedding(positions=Learned(size=context)),
        final_norm=norm,
        head=Tied() if fields.flag("tie_word_embeddings", True) else Untied(),
        context=context,
        dropout=Dropout(
            embedding=fields.number("embd_pdrop", 0.1),
            attention=fields.number("attn_pdrop", 0.1),
            residual=fields.number("resid_pdrop", 0.1),
        ),
    )


def _write_gpt2(config: ModelConfig) -> dict[str, Any] | None:
    block, rates = config.pattern[0], config.dropout
    if config.embedding.positions is None:
        return None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": block.mixer.heads,
        "n_inner": block.feed_forward.width,
        "activation_function": ACTIVATION_NAMES[block.feed_forward.activation],
        "layer_norm_epsilon": block.norm.eps,
        "embd_pdrop": rates.embedding,
        "attn_pdrop": rates.attention,
        "resid_pdrop": rates.residual,
        "scale_attn_weights": True,
        "tie_word_embeddings": isinstance(config.head, Tied),
    }


def _read_llama(fields: Fields) -> ModelConfig:
    width = fields.size("hidden_size", 4096)
    heads = fields.size("num_attention_heads", 32)
    norm = Norm(kind="rms", eps=fields.number("rms_norm_eps", 1e-6))
    attention_bias = fields.flag("attention_bias", False)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=fields.size("num_key_value_heads", heads),
            head_dim=fields.head_dim(width, heads, "head_dim"),
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            position=fields.rotary("rope_theta"),
        ),
        feed_forward=Mlp(
            width=fields.size("intermediate_size", 11008),
            activation=fields.activation("hidden_act", "silu"),
            gated=True,
            bias=fields.flag("mlp_bias", False),
        ),
        norm=norm,
    )
    return ModelConfig(
        vocab_size=fields.size("vocab_size", 32000),
        width=width,
        layers=fields.size("num_hidden_layers", 32),
        pattern=(block,),
        embedding=Embedding(),
        final_norm=norm,
        head=Tied() if fields.flag("tie_word_embeddings", False) else Untied(),
        context=fields.size("max_position_embeddings", 2048),
        dropout=Dropout(attention=fields.number("attention_dropout", 0.0)),
    )


def _write_llama(config: ModelConfig) -> dict[str, Any] | None:
    block = config.pattern[0]
    if block.mixer.position is None or not block.feed_forward.gated:
        return None
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": block.mixer.heads,
        "num_key_value_heads": block.mixer.kv_heads,
        "head_dim": block.mixer.head_dim,
        "intermediate_size": block.feed_forward.width,
        "hidden_act": ACTIVATION_NAMES[block.feed_forward.activation],
        "rms_norm_eps": block.norm.eps,
        "attention_bias": block.mixer.qkv_bias,
        "mlp_bias": block.feed_forward.bias,
        "attention_dropout": config.dropout.attention,
        "tie_word_embeddings": isinstance(config.head, Tied),
        **_rope_for_all_versions(block.mixer.position, "rope_theta"),
    }


def _read_gpt_neox(fields: Fields) -> ModelConfig:
    width = fields.size("hidden_size", 6144)
    heads = fields.size("num_attention_heads", 64)
    norm = Norm(kind="layer", eps=fields.number("layer_norm_eps", 1e-5))
    bias = fields.flag("attention_bias", True)
    parallel = fields.flag("use_parallel_residual", True)
    hidden_dropout = fields.number("hidden_dropout", 0.0)
    block = BlockConfig(
        mixer=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=fields.head_dim(width, heads),
            qkv_bias=bias,
            out_bias=bias,
            position=fields.rotary("rotary_emb_base", fraction_name="rotary_pct"),
        ),
        feed_forward=Mlp(
            width=fields.size("intermediate_size", 24576),
            activation=fields.activation("hidden_act", "gelu"),
        ),
        norm=norm,
        residual=Residual.PARALLEL if parallel else Residual.SEQUENTIAL,
    )
    return ModelConfig(
        vocab_size=fields.size("vocab_size", 50432),
        width=width,
        layers=fields.size("num_hidden_layers", 44),
        pattern=(block,),
        embedding=Embedding(),
        final_norm=norm,
        head=Tied() if fields.flag("tie_word_embeddings", False) else Untied(),
        context=fields.size("max_position_embeddings", 2048),
        dropout=Dropout(
            embedding=hidden_dropout,
            attention=fields.number("attention_dropout", 0.0),
            residual=hidden_dropout,
        ),
    )


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any] | None:
    block = config.pattern[0]
    position = block.mixer.position
    if position is None:
        return None
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": block.mixer.heads,
        "intermediate_size": block.feed_forward.width,
        "hidden_act": ACTIVATION_NAMES[block.feed_forward.activation],
        "layer_norm_eps": block.norm.eps,
        "attention_bias": block.mixer.qkv_bias,
        "use_parallel_residual": block.residual is Residual.PARALLEL,
        "attention_dropout": config.dropout.attention,
        "hidden_dropout": config.dropout.residual,
        "tie_word_embeddings": isinstance(config.head, Tied),
        "rotary_pct": position.fraction,
        **_rope_for_all_versions(
            position, "rotary_emb_base", partial_rotary_factor=position.fraction
        ),
    }


def _rope_for_all_versions(
    rotary: Rotary, theta_name: str, **extra: float
) -> dict[str, Any]:
    # transformers 5 reads rope_parameters; version 4 reads the base by its own name
    # and rope_scaling, which version 5 in turn prefers over rope_parameters.
    rope = {**rope_fields(rotary), **extra}
    scaled = {} if rotary.scaling is None else {"rope_scaling": rope}
    return {"rope_parameters": rope, theta_name: rotary.theta, **scaled}


FAMILIES = {
    "gpt2": (_read_gpt2, _write_gpt2),
    "llama": (_read_llama, _write_llama),
    "gpt_neox": (_read_gpt_neox, _write_gpt_neox),
}
"""Reader and writer by `model_type`."""
