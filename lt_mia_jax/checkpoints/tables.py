"""Names of stored tensors, one table a checkpoint family: data, no logic.

Rules whose leaves a model does not have are skipped, so that one table serves models
with and without biases, norms of heads, or a head of their own.
"""

from lt_mia_jax.checkpoints.rules import Rule, Table
from lt_mia_jax.checkpoints.transforms import (
    Copy,
    Depthwise,
    Flat,
    Linear,
    Operation,
    SplitChunks,
    SplitGrouped,
    SplitRows,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import Attention, ModelConfig, Residual, RgLru

Leaves = str | tuple[str, ...]
QKV = ("mixer/query", "mixer/key", "mixer/value")


def _rule(name: str, leaves: Leaves, operation: Operation) -> Rule:
    """A rule; a lone leaf may stand without its tuple."""
    return Rule(name, (leaves,) if isinstance(leaves, str) else leaves, operation)


def _linear(name: str, module: str) -> tuple[Rule, Rule]:
    """A matrix stored (out, in), and its bias."""
    return (
        _rule(f"{name}.weight", f"{module}/kernel", Linear()),
        _rule(f"{name}.bias", f"{module}/bias", Copy()),
    )


def _fused(name: str, operation: Operation) -> tuple[Rule, ...]:
    """Queries, keys and values in one matrix, and in one bias."""
    return tuple(
        _rule(f"{name}.{theirs}", tuple(f"{m}/{ours}" for m in QKV), operation)
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    )


def _norm(name: str, module: str) -> tuple[Rule, Rule]:
    """The factor and the constant of a norm."""
    return (
        _rule(f"{name}.weight", f"{module}/scale", Copy()),
        _rule(f"{name}.bias", f"{module}/bias", Copy()),
    )


def _conv1d(name: str, module: str) -> tuple[Rule, Rule]:
    """A matrix stored (in, out) as GPT-2 does, and its bias."""
    return (
        _rule(f"{name}.weight", f"{module}/kernel", Copy()),
        _rule(f"{name}.bias", f"{module}/bias", Copy()),
    )


def _table(
    prefix: str,
    embedding: str,
    final_norm: str,
    block: str,
    rules: tuple[tuple[Rule, ...], ...],
    *,
    heads: tuple[str, ...] = ("lm_head.weight",),
    ignored: tuple[str, ...] = (),
    extra: tuple[Rule, ...] = (),
) -> Table:
    """A table; names of `rules` are relative to `block`, the others to `prefix`."""
    layers = tuple(
        rule._replace(name=f"{prefix}{block}{rule.name}")
        for group in rules
        for rule in group
    )
    whole = (
        _rule(f"{embedding}.weight", "embedding/tokens", Copy()),
        *_norm(final_norm, "final_norm"),
        *extra,
    )
    return Table(
        prefix=prefix,
        token_embedding=f"{prefix}{embedding}.weight",
        heads=heads,
        ignored=ignored,
        rules=(
            *(rule._replace(name=prefix + rule.name) for rule in whole),
            _rule(heads[0], "head/kernel", Linear()),
            _rule(heads[0].replace("weight", "bias"), "head/bias", Copy()),
            *layers,
        ),
    )


def _attention(config: ModelConfig) -> Attention:
    mixer = config.pattern[0].mixer
    if not isinstance(mixer, Attention):
        raise InputError(f"expected an attention model, found {type(mixer).__name__}")
    return mixer


def gpt2(config: ModelConfig) -> Table:
    """GPT-2: fused [q | k | v], every matrix stored (in, out)."""
    return _table(
        "transformer.",
        "wte",
        "ln_f",
        "h.{i}.",
        (
            _norm("ln_1", "mixer_norm"),
            _fused("attn.c_attn", SplitChunks(3)),
            _conv1d("attn.c_proj", "mixer/output"),
            _norm("ln_2", "feed_forward_norm"),
            _conv1d("mlp.c_fc", "feed_forward/up"),
            _conv1d("mlp.c_proj", "feed_forward/down"),
        ),
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        extra=(_rule("wpe.weight", "embedding/positions", Copy()),),
    )


def gptj(config: ModelConfig) -> Table:
    """GPT-J: separate projections, one norm a layer."""
    return _table(
        "transformer.",
        "wte",
        "ln_f",
        "h.{i}.",
        (
            _norm("ln_1", "mixer_norm"),
            _linear("attn.q_proj", "mixer/query"),
            _linear("attn.k_proj", "mixer/key"),
            _linear("attn.v_proj", "mixer/value"),
            _linear("attn.out_proj", "mixer/output"),
            _linear("mlp.fc_in", "feed_forward/up"),
            _linear("mlp.fc_out", "feed_forward/down"),
        ),
        ignored=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
    )


def llama(config: ModelConfig) -> Table:
    """Llama and the many that kept its names."""
    return _table(
        "model.",
        "embed_tokens",
        "norm",
        "layers.{i}.",
        (
            _norm("input_layernorm", "mixer_norm"),
            _linear("self_attn.q_proj", "mixer/query"),
            _linear("self_attn.k_proj", "mixer/key"),
            _linear("self_attn.v_proj", "mixer/value"),
            _linear("self_attn.o_proj", "mixer/output"),
            _norm("self_attn.q_norm", "mixer/query_norm"),
            _norm("self_attn.k_norm", "mixer/key_norm"),
            _norm("post_attention_layernorm", "feed_forward_norm"),
            _linear("mlp.gate_proj", "feed_forward/gate"),
            _linear("mlp.up_proj", "feed_forward/up"),
            _linear("mlp.down_proj", "feed_forward/down"),
        ),
        ignored=("*.rotary_emb.inv_freq",),
    )


def stablelm(config: ModelConfig) -> Table:
    """StableLM: Llama's names, and a norm for every head."""
    table = llama(config)
    per_head = tuple(
        _rule(
            f"model.layers.{{i}}.self_attn.{short}_layernorm.norms.{{h}}.weight",
            f"mixer/{name}_norm/scale",
            Copy(),
        )
        for short, name in (("q", "query"), ("k", "key"))
    )
    kept = tuple(rule for rule in table.rules if "_norm." not in rule.name)
    return Table(
        prefix=table.prefix,
        token_embedding=table.token_embedding,
        heads=table.heads,
        ignored=table.ignored,
        rules=kept + per_head,
    )


def phi(config: ModelConfig) -> Table:
    """Phi: one norm a layer, names between Llama's and OPT's."""
    return _table(
        "model.",
        "embed_tokens",
        "final_layernorm",
        "layers.{i}.",
        (
            _norm("input_layernorm", "mixer_norm"),
            _linear("self_attn.q_proj", "mixer/query"),
            _linear("self_attn.k_proj", "mixer/key"),
            _linear("self_attn.v_proj", "mixer/value"),
            _linear("self_attn.dense", "mixer/output"),
            _norm("self_attn.q_layernorm", "mixer/query_norm"),
            _norm("self_attn.k_layernorm", "mixer/key_norm"),
            _linear("mlp.fc1", "feed_forward/up"),
            _linear("mlp.fc2", "feed_forward/down"),
        ),
        ignored=("*.rotary_emb.inv_freq",),
    )


def gpt_neox(config: ModelConfig) -> Table:
    """GPT-NeoX: queries, keys and values fused head by head."""
    return _table(
        "gpt_neox.",
        "embed_in",
        "final_layer_norm",
        "layers.{i}.",
        (
            _norm("input_layernorm", "mixer_norm"),
            _fused("attention.query_key_value", SplitGrouped(_attention(config).heads)),
            _linear("attention.dense", "mixer/output"),
            _norm("post_attention_layernorm", "feed_forward_norm"),
            _linear("mlp.dense_h_to_4h", "feed_forward/up"),
            _linear("mlp.dense_4h_to_h", "feed_forward/down"),
        ),
        heads=("embed_out.weight", "lm_head.weight"),
        ignored=(
            "*.attention.bias",
            "*.attention.masked_bias",
            "*.rotary_emb.inv_freq",
        ),
    )


def falcon(config: ModelConfig) -> Table:
    """Falcon: fused by groups of heads; parallel norms have names of their own."""
    mixer = _attention(config)
    both = config.pattern[0].residual is Residual.PARALLEL
    names = ("ln_attn", "ln_mlp") if both else _NORMS
    split = SplitGrouped(mixer.kv_heads, mixer.heads // mixer.kv_heads)
    return _table(
        "transformer.",
        "word_embeddings",
        "ln_f",
        "h.{i}.",
        (
            _norm(names[0], "mixer_norm"),
            _fused("self_attention.query_key_value", split),
            _linear("self_attention.dense", "mixer/output"),
            _norm(names[1], "feed_forward_norm"),
            _linear("mlp.dense_h_to_4h", "feed_forward/up"),
            _linear("mlp.dense_4h_to_h", "feed_forward/down"),
        ),
        ignored=("*.rotary_emb.inv_freq", "*.maybe_rotary.inv_freq"),
    )


def bloom(config: ModelConfig) -> Table:
    """BLOOM: fused head by head, the embedding normalized."""
    return _table(
        "transformer.",
        "word_embeddings",
        "ln_f",
        "h.{i}.",
        (
            _norm(_NORMS[0], "mixer_norm"),
            _fused(
                "self_attention.query_key_value",
                SplitGrouped(_attention(config).heads),
            ),
            _linear("self_attention.dense", "mixer/output"),
            _norm(_NORMS[1], "feed_forward_norm"),
            _linear("mlp.dense_h_to_4h", "feed_forward/up"),
            _linear("mlp.dense_4h_to_h", "feed_forward/down"),
        ),
        extra=_norm("word_embeddings_layernorm", "embedding_norm"),
    )


_NORMS = ("input_layernorm", "post_attention_layernorm")


def mpt(config: ModelConfig) -> Table:
    """MPT: fused [q | k | v] rows."""
    mixer = _attention(config)
    rows = mixer.heads * mixer.head_dim
    return _table(
        "transformer.",
        "wte",
        "norm_f",
        "blocks.{i}.",
        (
            _norm("norm_1", "mixer_norm"),
            _fused("attn.Wqkv", SplitRows((rows, rows, rows))),
            _linear("attn.out_proj", "mixer/output"),
            _norm("norm_2", "feed_forward_norm"),
            _linear("ffn.up_proj", "feed_forward/up"),
            _linear("ffn.down_proj", "feed_forward/down"),
        ),
    )


def opt(config: ModelConfig) -> Table:
    """OPT: separate projections, positions in a table."""
    return _table(
        "model.",
        "decoder.embed_tokens",
        "decoder.final_layer_norm",
        "decoder.layers.{i}.",
        (
            _norm("self_attn_layer_norm", "mixer_norm"),
            _linear("self_attn.q_proj", "mixer/query"),
            _linear("self_attn.k_proj", "mixer/key"),
            _linear("self_attn.v_proj", "mixer/value"),
            _linear("self_attn.out_proj", "mixer/output"),
            _norm("final_layer_norm", "feed_forward_norm"),
            _linear("fc1", "feed_forward/up"),
            _linear("fc2", "feed_forward/down"),
        ),
        extra=(_rule("decoder.embed_positions.weight", "embedding/positions", Copy()),),
    )


def mamba(config: ModelConfig) -> Table:
    """Mamba: one norm and one mixer a layer."""
    return _table(
        "backbone.",
        "embeddings",
        "norm_f",
        "layers.{i}.",
        (
            _norm("norm", "mixer_norm"),
            _linear("mixer.in_proj", "mixer/input"),
            _linear("mixer.x_proj", "mixer/select"),
            _linear("mixer.out_proj", "mixer/output"),
            (
                _rule("mixer.conv1d.weight", "mixer/conv/taps", Depthwise()),
                _rule("mixer.conv1d.bias", "mixer/conv/bias", Copy()),
                _rule("mixer.dt_proj.weight", "mixer/step/up/kernel", Linear()),
                _rule("mixer.dt_proj.bias", "mixer/step/bias", Copy()),
                _rule("mixer.A_log", "mixer/log_decay", Copy()),
                _rule("mixer.D", "mixer/skip", Copy()),
            ),
        ),
    )


def rwkv(config: ModelConfig) -> Table:
    """RWKV-4: the embedding's norm is stored with the first layer."""
    return _table(
        "rwkv.",
        "embeddings",
        "ln_out",
        "blocks.{i}.",
        (
            _norm("ln1", "mixer_norm"),
            _norm("ln2", "feed_forward_norm"),
            (
                _rule("attention.time_decay", "mixer/decay", Copy()),
                _rule("attention.time_first", "mixer/bonus", Copy()),
            ),
            tuple(
                _rule(f"{theirs}.time_mix_{name}", f"{ours}/mix_{name}", Flat(2))
                for theirs, ours, names in (
                    ("attention", "mixer", ("key", "value", "receptance")),
                    ("feed_forward", "feed_forward", ("key", "receptance")),
                )
                for name in names
            ),
            _linear("attention.key", "mixer/key"),
            _linear("attention.value", "mixer/value"),
            _linear("attention.receptance", "mixer/receptance"),
            _linear("attention.output", "mixer/output"),
            _linear("feed_forward.key", "feed_forward/key"),
            _linear("feed_forward.receptance", "feed_forward/receptance"),
            _linear("feed_forward.value", "feed_forward/value"),
        ),
        heads=("head.weight",),
        extra=_norm("blocks.0.pre_ln", "embedding_norm"),
    )


def recurrent_gemma(config: ModelConfig) -> Table:
    """RecurrentGemma: two kinds of mixer under one name."""

    def only(mixer: type, *groups: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(rule._replace(mixer=mixer) for group in groups for rule in group)

    gates = tuple(
        _rule(
            f"temporal_block.rg_lru.{theirs}_gate_{part}",
            f"mixer/recurrence/{ours}_gate/{leaf}",
            Copy(),
        )
        for theirs, ours in (("input", "input"), ("recurrent", "decay"))
        for part, leaf in (("weight", "blocks"), ("bias", "bias"))
    )
    return _table(
        "model.",
        "embed_tokens",
        "final_norm",
        "layers.{i}.",
        (
            _norm("temporal_pre_norm", "mixer_norm"),
            _norm("channel_pre_norm", "feed_forward_norm"),
            only(
                Attention,
                _linear("temporal_block.q_proj", "mixer/query"),
                _linear("temporal_block.k_proj", "mixer/key"),
                _linear("temporal_block.v_proj", "mixer/value"),
                _linear("temporal_block.o_proj", "mixer/output"),
            ),
            only(
                RgLru,
                _linear("temporal_block.linear_y", "mixer/gate"),
                _linear("temporal_block.linear_x", "mixer/input"),
                _linear("temporal_block.linear_out", "mixer/output"),
                (
                    _rule(
                        "temporal_block.conv_1d.weight", "mixer/conv/taps", Depthwise()
                    ),
                    _rule("temporal_block.conv_1d.bias", "mixer/conv/bias", Copy()),
                    _rule(
                        "temporal_block.rg_lru.recurrent_param",
                        "mixer/recurrence/decay",
                        Copy(),
                    ),
                ),
                gates,
            ),
            _linear("mlp_block.gate_proj", "feed_forward/gate"),
            _linear("mlp_block.up_proj", "feed_forward/up"),
            _linear("mlp_block.down_proj", "feed_forward/down"),
        ),
        ignored=("*.rotary_emb.inv_freq",),
    )


TABLES = {
    "gpt2": gpt2,
    "gptj": gptj,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma": llama,
    "olmo": llama,
    "stablelm": stablelm,
    "phi": phi,
    "gpt_neox": gpt_neox,
    "falcon": falcon,
    "bloom": bloom,
    "mpt": mpt,
    "opt": opt,
    "mamba": mamba,
    "rwkv": rwkv,
    "recurrent_gemma": recurrent_gemma,
}
"""By the `model_type` of config.json."""
