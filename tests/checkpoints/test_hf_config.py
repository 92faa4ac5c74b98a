import dataclasses
import json
import logging
import math

import pytest
from family_zoo import VARIANTS
from model_zoo import configs, with_block

from lt_mia_jax.checkpoints import read_config, write_config
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import gpt2_like
from lt_mia_jax.models.config import (
    Dropout,
    LinearScaling,
    Llama3Scaling,
    Residual,
    Rotary,
    Tied,
    Untied,
)


def family(name):
    return {"model_type": VARIANTS[name][0], **VARIANTS[name][1]}


GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
NEOX = {**LLAMA, "model_type": "gpt_neox"}


def position(data):
    return read_config(data, "config.json").pattern[0].mixer.position


PRESETS = {
    "neox": "gpt_neox",
    "mamba-preset": "mamba",
    "rwkv-preset": "rwkv",
    "griffin-preset": "recurrent_gemma",
}


@pytest.mark.parametrize("name", configs())
def test_written_config_reads_back_equal(name):
    config = configs()[name]
    family = VARIANTS.get(name, (PRESETS.get(name, name),))[0]
    kind, data = write_config(config, prefer=family)
    assert kind == family
    assert read_config(data, "config.json") == config
    json.dumps(data)


def test_the_first_family_that_can_say_it_is_taken():
    assert write_config(configs()["mistral-no-window"])[0] == "llama"
    assert write_config(configs()["mistral"])[0] == "mistral"
    assert write_config(configs()["mistral"], prefer="llama")[0] == "mistral"


def test_dropout_round_trip():
    rates = Dropout(embedding=0.1, attention=0.2, residual=0.3)
    config = dataclasses.replace(configs()["gpt2"], dropout=rates)
    assert read_config(write_config(config)[1], "config.json").dropout == rates


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # One field each that the family cannot say.
        ("neox", {"dropout": Dropout(embedding=0.5)}),
        ("llama", {"dropout": Dropout(residual=0.5)}),
        ("gpt2", {"final_norm": configs()["llama"].final_norm}),
    ],
)
def test_config_of_no_family_is_refused(name, change):
    config = dataclasses.replace(configs()[name], **change)
    with pytest.raises(InputError, match="no supported model_type"):
        write_config(config)


def test_a_model_that_sees_later_tokens_is_refused():
    masked = with_block(configs()["llama"], mixer={"causal": False})
    with pytest.raises(InputError, match="later tokens has no model_type"):
        write_config(masked)


def test_defaults_are_those_of_the_family():
    gpt2 = read_config(GPT2, "config.json")
    assert gpt2.pattern[0].feed_forward.activation == "gelu_tanh"
    assert gpt2.pattern[0].feed_forward.width == 256
    assert gpt2.head == Tied()
    assert gpt2.dropout == Dropout(embedding=0.1, attention=0.1, residual=0.1)
    llama = read_config(LLAMA, "config.json")
    assert llama.head == Untied()
    assert llama.final_norm.eps == 1e-6
    assert llama.pattern[0].mixer.kv_heads == 4
    neox = read_config(NEOX, "config.json")
    assert neox.pattern[0].residual is Residual.PARALLEL
    assert neox.pattern[0].mixer.rotary_dim == 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Rotary()),
        ({"rope_theta": 5e5}, Rotary(theta=5e5)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7}},
            Rotary(theta=7.0),
        ),
        (
            {"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            Rotary(theta=9.0, scaling=LinearScaling(factor=2.0)),
        ),
        ({"rope_theta": 9.0, "rope_scaling": None}, Rotary(theta=9.0)),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            Rotary(
                scaling=Llama3Scaling(
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_context=8192,
                )
            ),
        ),
    ],
)
def test_rotary_fields_of_old_and_new_versions(fields, expected):
    assert position({**LLAMA, **fields}) == expected


def test_neox_rotary_names_of_old_and_new_versions():
    old = position({**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 100})
    parameters = {"partial_rotary_factor": 0.5, "rope_theta": 100.0}
    new = position({**NEOX, "rope_parameters": parameters})
    assert old == new == Rotary(theta=100.0, fraction=0.5)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "mystery"])
def test_other_rotary_scalings_are_refused(kind):
    data = {**LLAMA, "rope_scaling": {"rope_type": kind, "factor": 2.0}}
    with pytest.raises(InputError, match=f"rope_type = '{kind}'"):
        read_config(data, "config.json")


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (GPT2, "scale_attn_weights", False),
        (GPT2, "scale_attn_by_inverse_layer_idx", 1),
        (GPT2, "add_cross_attention", True),
        (GPT2, "activation_function", "quick_gelu"),
        (GPT2, "n_head", 5),
        (GPT2, "n_layer", "12"),
        (GPT2, "n_embd", 0),
        (GPT2, "layer_norm_epsilon", "small"),
        (GPT2, "resid_pdrop", 1.5),
        (LLAMA, "hidden_act", "mish"),
        (LLAMA, "num_key_value_heads", 3),
        (LLAMA, "attention_bias", 1),
        (LLAMA, "quantization_config", {"bits": 4}),
        (LLAMA, "rope_parameters", [1]),
        (LLAMA, "rope_parameters", {"partial_rotary_factor": 0.5}),
        (LLAMA, "rope_scaling", {"type": "linear"}),
        (LLAMA, "rope_scaling", {"type": "linear", "factor": 2, "novel": 1}),
        (NEOX, "rotary_pct", 0.2),
        (family("gptj"), "tie_word_embeddings", True),
        (family("gptj"), "rotary_dim", 1000),
        (family("gptj"), "rotary_dim", None),
        (family("mistral"), "sliding_window", 0),
        (family("mistral"), "sliding_window", "all"),
        (family("qwen2"), "layer_types", ["full_attention"]),
        (family("qwen2"), "layer_types", ["full_attention", "chunked_attention"]),
        (family("qwen2"), "max_window_layers", "one"),
        (family("gemma"), "hidden_activation", "silu"),
        (family("gemma"), "use_bidirectional_attention", True),
        (family("falcon-7b"), "hidden_dropout", 0.1),
        (family("falcon-7b"), "num_ln_in_parallel_attn", 2),
        (family("falcon-new"), "parallel_attn", False),
        (family("mpt"), "no_bias", False),
        (family("mpt"), "logit_scale", 2.0),
        (family("mpt"), "expansion_ratio", 3),
        (family("mpt"), "attn_config", {"alibi": False}),
        (family("mpt"), "attn_config", {"qk_ln": True}),
        (family("mpt"), "attn_config", {"prefix_lm": True}),
        (family("mpt"), "attn_config", {"alibi_bias_max": 16}),
        (family("mpt"), "attn_config", {"attn_type": "multiquery_attention"}),
        (family("mpt"), "attn_config", 3),
        (family("bloom"), "apply_residual_connection_post_layernorm", True),
        (family("opt"), "do_layer_norm_before", 0),
        (family("opt"), "word_embed_proj_dim", 0),
        (family("opt"), "layerdrop", 0.1),
        (family("gemma2"), "query_pre_attn_scalar", 0),
        (family("gemma2"), "attn_logit_softcapping", -1.0),
        (family("gemma2"), "layer_types", ["sliding_attention"]),
        (family("gemma2"), "hidden_activation", "mish"),
        (family("gemma3_text"), "attn_logit_softcapping", 50.0),
        (family("gemma3_text"), "sliding_window", 0),
        (family("gemma3_text"), "sliding_window_pattern", 0),
        (family("gemma3_text"), "rope_parameters", {"rope_type": "linear"}),
        (family("gemma3_text"), "rope_scaling", {"rope_type": "yarn"}),
        (family("gemma3_text"), "use_bidirectional_attention", True),
        (family("phi"), "tie_word_embeddings", True),
        (family("olmo"), "clip_qkv", -1.0),
        (family("stablelm"), "hidden_dropout", 0.1),
        (family("stablelm"), "qk_layernorm", 1),
        (family("mamba"), "intermediate_size", 63),
        (family("mamba"), "time_step_rank", 0),
        (family("mamba"), "hidden_act", "tanh"),
        (family("rwkv"), "attention_hidden_size", -1),
        (family("recurrent_gemma"), "block_types", ["recurrent", "mlp"]),
        (family("recurrent_gemma"), "block_types", []),
        (family("recurrent_gemma"), "head_dim", 5),
        (family("recurrent_gemma"), "intermediate_size", 7),
    ],
)
def test_values_that_change_the_logits_are_refused(base, field, value):
    with pytest.raises(InputError) as caught:
        read_config({**base, field: value}, "some/config.json")
    assert "some/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_offenders_are_listed_at_once():
    wrong = {"scale_attn_weights": False, "activation_function": "x", "n_layer": -1}
    with pytest.raises(InputError) as caught:
        read_config({**GPT2, **wrong}, "config.json")
    for name in wrong:
        assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", None, 3, ["llama"], {}])
def test_other_model_types_are_refused(kind):
    with pytest.raises(InputError) as caught:
        read_config({"model_type": kind, "architectures": 3}, "config.json")
    assert "check that this is the config.json of a causal" in str(caught.value)
    assert "supported are ['bloom', 'falcon', 'gemma', 'gemma2'" in str(caught.value)


def test_config_that_is_not_an_object_is_refused():
    with pytest.raises(InputError, match="model_type is None"):
        read_config([1], "config.json")


def test_fields_without_a_reader_are_logged(caplog):
    data = {**GPT2, "novel": 3, "use_cache": True, "bos_token_id": 1, "absent": None}
    with caplog.at_level(logging.WARNING):
        read_config(data, "config.json")
    assert "['novel']" in caplog.text


def test_inner_width_and_epsilon_survive():
    config = with_block(gpt2_like(9, 8, 1, 2, 4), feed_forward={"width": 10})
    _, data = write_config(config)
    assert data["n_inner"] == 10


SCALED = {"type": "linear", "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FLOATS = [
    (GPT2, "layer_norm_epsilon", lambda x: {"layer_norm_epsilon": x}),
    (GPT2, "resid_pdrop|dropout.residual", lambda x: {"resid_pdrop": x}),
    (LLAMA, "rms_norm_eps", lambda x: {"rms_norm_eps": x}),
    (LLAMA, "rope_theta", lambda x: {"rope_theta": x}),
    (LLAMA, "rope_theta", lambda x: {"rope_parameters": {"rope_theta": x}}),
    (LLAMA, "factor", lambda x: {"rope_scaling": {**SCALED, "factor": x}}),
    *(
        (LLAMA, name, lambda x, name=name: {"rope_scaling": {**LLAMA3, name: x}})
        for name in sorted(LLAMA3.keys() - {"rope_type"})
    ),
    (NEOX, "rotary_pct", lambda x: {"rotary_pct": x}),
    (family("recurrent_gemma"), "logits_soft_cap", lambda x: {"logits_soft_cap": x}),
    (family("mpt"), "clip_qkv", lambda x: {"attn_config": {"clip_qkv": x}}),
    (family("mpt"), "softmax_scale", lambda x: {"attn_config": {"softmax_scale": x}}),
]


@pytest.mark.parametrize(("data", "name", "change"), FLOATS)
@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, math.nan, -1, 1e300, 10**400, -(10**400)],
    ids=["inf", "-inf", "nan", "-1", "1e300", "1e400", "-1e400"],
)
def test_every_float_is_finite_and_in_its_range(data, name, change, value):
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        read_config(data | change(value), "config.json")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [0, -1, 2**24 + 1, 10**12, 10**400, 2.0, True])
@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_layer", "n_inner"])
def test_sizes_are_bounded(name, value):
    with pytest.raises(InputError, match=f"{name} = .*expected a positive integer"):
        read_config({**GPT2, name: value}, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": 3},
        {"layer_types": [["full_attention"]] * 2},
        {"layer_types": ["full_attention"] * 10_000},
        {"rope_scaling": {"rope_type": ["linear"]}},
        {"num_hidden_layers": 10**9},
    ],
)
def test_lists_where_names_stand_are_refused(change):
    data = {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 2, **change}
    with pytest.raises(InputError, match=r"layer_types|rope_type|num_hidden"):
        read_config(data, "config.json")


@pytest.mark.parametrize("kinds", [3, [], [["recurrent"]], {"recurrent": 1}])
def test_kinds_of_blocks_are_names(kinds):
    with pytest.raises(InputError, match="block_types"):
        read_config({**family("recurrent_gemma"), "block_types": kinds}, "config.json")


def test_an_embedding_as_wide_as_the_stream_needs_no_projection():
    for fields in ({}, {"word_embed_proj_dim": None}, {"word_embed_proj_dim": 32}):
        data = {**family("opt"), "word_embed_proj_dim": None, **fields}
        assert read_config(data, "x").embedding.width is None


@pytest.mark.parametrize("kind", ["olmo", "olmo2"])
def test_the_own_format_of_olmo_is_refused_not_defaulted(kind):
    native = {"d_model": 2048, "n_heads": 16, "n_layers": 16, "mlp_ratio": 8}
    with pytest.raises(InputError, match=r"d_model.*mlp_ratio.*own format.*-hf"):
        read_config({"model_type": kind, **native, "vocab_size": 50280}, "x")
