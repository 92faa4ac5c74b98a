"""Names of stored tensors, one table a checkpoint family: data, no logic."""

from lt_mia_jax.checkpoints.rules import Rule, Table
from lt_mia_jax.checkpoints.transforms import (
    Copy,
    Linear,
    Operation,
    SplitChunks,
    SplitPerHead,
)
from lt_mia_jax.models.config import ModelConfig

QKV_KERNELS = ("mixer/query/kernel", "mixer/key/kernel", "mixer/value/kernel")
QKV_BIASES = ("mixer/query/bias", "mixer/key/bias", "mixer/value/bias")


def _named(
    prefix: str, *rows: tuple[str, str | tuple[str, ...], Operation]
) -> tuple[Rule, ...]:
    """Rules with a common name prefix; a lone leaf may stand without its tuple."""
    return tuple(
        Rule(prefix + name, (leaf,) if isinstance(leaf, str) else leaf, operation)
        for name, leaf, operation in rows
    )


def gpt2(config: ModelConfig) -> Table:
    """GPT-2: fused [q | k | v], every matrix stored (in, out)."""
    del config
    return Table(
        prefix="transformer.",
        token_embedding="transformer.wte.weight",
        heads=("lm_head.weight",),
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        rules=(
            *_named(
                "transformer.",
                ("wte.weight", "embedding/tokens", Copy()),
                ("wpe.weight", "embedding/positions", Copy()),
                ("ln_f.weight", "final_norm/scale", Copy()),
                ("ln_f.bias", "final_norm/bias", Copy()),
            ),
            Rule("lm_head.weight", ("head/kernel",), Linear()),
            *_named(
                "transformer.h.{i}.",
                ("ln_1.weight", "mixer_norm/scale", Copy()),
                ("ln_1.bias", "mixer_norm/bias", Copy()),
                ("attn.c_attn.weight", QKV_KERNELS, SplitChunks(3)),
                ("attn.c_attn.bias", QKV_BIASES, SplitChunks(3)),
                ("attn.c_proj.weight", "mixer/output/kernel", Copy()),
                ("attn.c_proj.bias", "mixer/output/bias", Copy()),
                ("ln_2.weight", "feed_forward_norm/scale", Copy()),
                ("ln_2.bias", "feed_forward_norm/bias", Copy()),
                ("mlp.c_fc.weight", "feed_forward/up/kernel", Copy()),
                ("mlp.c_fc.bias", "feed_forward/up/bias", Copy()),
                ("mlp.c_proj.weight", "feed_forward/down/kernel", Copy()),
                ("mlp.c_proj.bias", "feed_forward/down/bias", Copy()),
            ),
        ),
    )


def llama(config: ModelConfig) -> Table:
    """Llama: separate projections, biases where the config asks for them."""
    del config
    return Table(
        prefix="model.",
        token_embedding="model.embed_tokens.weight",
        heads=("lm_head.weight",),
        ignored=("*.rotary_emb.inv_freq",),
        rules=(
            Rule("model.embed_tokens.weight", ("embedding/tokens",), Copy()),
            Rule("model.norm.weight", ("final_norm/scale",), Copy()),
            Rule("lm_head.weight", ("head/kernel",), Linear()),
            *_named(
                "model.layers.{i}.",
                ("input_layernorm.weight", "mixer_norm/scale", Copy()),
                ("self_attn.q_proj.weight", "mixer/query/kernel", Linear()),
                ("self_attn.k_proj.weight", "mixer/key/kernel", Linear()),
                ("self_attn.v_proj.weight", "mixer/value/kernel", Linear()),
                ("self_attn.o_proj.weight", "mixer/output/kernel", Linear()),
                ("self_attn.q_proj.bias", "mixer/query/bias", Copy()),
                ("self_attn.k_proj.bias", "mixer/key/bias", Copy()),
                ("self_attn.v_proj.bias", "mixer/value/bias", Copy()),
                ("self_attn.o_proj.bias", "mixer/output/bias", Copy()),
                ("post_attention_layernorm.weight", "feed_forward_norm/scale", Copy()),
                ("mlp.gate_proj.weight", "feed_forward/gate/kernel", Linear()),
                ("mlp.up_proj.weight", "feed_forward/up/kernel", Linear()),
                ("mlp.down_proj.weight", "feed_forward/down/kernel", Linear()),
                ("mlp.gate_proj.bias", "feed_forward/gate/bias", Copy()),
                ("mlp.up_proj.bias", "feed_forward/up/bias", Copy()),
                ("mlp.down_proj.bias", "feed_forward/down/bias", Copy()),
            ),
        ),
    )


def gpt_neox(config: ModelConfig) -> Table:
    """GPT-NeoX: queries, keys and values fused head by head."""
    split = SplitPerHead(heads=config.pattern[0].mixer.heads)
    return Table(
        prefix="gpt_neox.",
        token_embedding="gpt_neox.embed_in.weight",
        heads=("embed_out.weight", "lm_head.weight"),
        ignored=(
            "*.attention.bias",
            "*.attention.masked_bias",
            "*.rotary_emb.inv_freq",
        ),
        rules=(
            Rule("gpt_neox.embed_in.weight", ("embedding/tokens",), Copy()),
            Rule("gpt_neox.final_layer_norm.weight", ("final_norm/scale",), Copy()),
            Rule("gpt_neox.final_layer_norm.bias", ("final_norm/bias",), Copy()),
            Rule("embed_out.weight", ("head/kernel",), Linear()),
            *_named(
                "gpt_neox.layers.{i}.",
                ("input_layernorm.weight", "mixer_norm/scale", Copy()),
                ("input_layernorm.bias", "mixer_norm/bias", Copy()),
                ("attention.query_key_value.weight", QKV_KERNELS, split),
                ("attention.query_key_value.bias", QKV_BIASES, split),
                ("attention.dense.weight", "mixer/output/kernel", Linear()),
                ("attention.dense.bias", "mixer/output/bias", Copy()),
                ("post_attention_layernorm.weight", "feed_forward_norm/scale", Copy()),
                ("post_attention_layernorm.bias", "feed_forward_norm/bias", Copy()),
                ("mlp.dense_h_to_4h.weight", "feed_forward/up/kernel", Linear()),
                ("mlp.dense_h_to_4h.bias", "feed_forward/up/bias", Copy()),
                ("mlp.dense_4h_to_h.weight", "feed_forward/down/kernel", Linear()),
                ("mlp.dense_4h_to_h.bias", "feed_forward/down/bias", Copy()),
            ),
        ),
    )


TABLES = {"gpt2": gpt2, "llama": llama, "gpt_neox": gpt_neox}
"""By the `model_type` of config.json."""
