"""Which metadata of a GGUF file are read, ignored and refused."""

import numpy as np
import pytest
from gguf_files import refused, same_bits
from model_zoo import configs, random_params

from lt_mia_jax.checkpoints import load_model
from lt_mia_jax.checkpoints.gguf import (
    GgufReader,
    read_gguf_config,
)


def test_absent_metadata_have_the_defaults_of_the_format(write):
    optional = (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    )

    def change(metadata, tensors):
        for key in optional:
            del metadata[f"llama.{key}"]

    config = configs()["llama"]
    found, loaded = load_model(write(config, change=change))
    assert found == config
    same_bits(random_params(config), loaded)


@pytest.mark.parametrize(
    "extra",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.finetuned": True, "llama.tensor_data_layout": "Meta"},
        {"general.name": "a name", "split.count": 1, "tokenizer.ggml.model": "gpt2"},
    ],
)
def test_metadata_without_effect(extra, write):
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    assert load_model(path)[0] == configs()["llama"]


def test_numbers_are_the_decimals_that_were_rounded(write):
    def change(metadata, tensors):
        metadata["llama.attention.layer_norm_rms_epsilon"] = 1e-5
        metadata["llama.rope.freq_base"] = 12345.67
        metadata["llama.rope.scale_linear"] = 2.1

    with GgufReader(write(configs()["llama"], change=change)) as reader:
        data = read_gguf_config(reader)
    assert data["rms_norm_eps"] == 1e-5
    assert data["rope_theta"] == 12345.67
    assert data["rope_scaling"] == {"rope_type": "linear", "factor": 2.1}


def test_rope_factors_only_when_they_are_one(write):
    config = configs()["llama"]
    ones = {"rope_freqs.weight": np.ones(2, np.float32)}
    found, loaded = load_model(write(config, change=lambda _, t: t.update(ones)))
    assert found == config
    same_bits(random_params(config), loaded)
    ones["rope_freqs.weight"][1] = 8
    path = write(config, change=lambda _, t: t.update(ones))
    refused(path, r"rope_freqs\.weight rescales.*safetensors")


def test_unimplemented_metadata_are_listed(write):
    extra = {
        "llama.expert_count": 8,
        "llama.attention.sliding_window": 4096,
        "llama.rope.scaling.attn_factor": 1.5,
        "llama.rope.dimension_count": 2,
    }
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    text = refused(path, "not implemented")
    assert all(f"{key} = {value}" in text for key, value in extra.items())


def test_other_rope_scaling(write):
    extra = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 4,
    }
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    refused(path, "rope_type = 'yarn'")


def test_missing_metadata_are_listed(write):
    gone = ("llama.block_count", "llama.attention.layer_norm_rms_epsilon")

    def change(metadata, tensors):
        for key in gone:
            del metadata[key]

    text = refused(write(configs()["llama"], change=change), "missing metadata")
    assert all(f"'{key}'" in text for key in gone)


@pytest.mark.parametrize("value", [[4, 2], 0, "four", 4.0])
def test_head_count_must_be_one_positive_integer(value, write):
    extra = {"llama.attention.head_count": value}
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    text = refused(path, "not a positive integer")
    assert f"llama.attention.head_count = {value!r}" in text


def test_another_architecture_or_a_part(write):
    config = configs()["llama"]
    refused(write(config, arch="gpt2"), "architecture 'gpt2'.*supported is 'llama'")
    path = write(config, change=lambda meta, _: meta.update({"split.count": 3}))
    refused(path, "in 3 file.*llama-gguf-split --merge")


def test_rows_beyond_the_tokens_are_embedded_too(write):
    def change(metadata, tensors):
        metadata["llama.vocab_size"] -= 3

    config = configs()["llama"]
    found, loaded = load_model(write(config, change=change))
    assert found == config
    same_bits(random_params(config), loaded)


def test_fewer_rows_than_tokens_are_a_mistake(write):
    def change(metadata, tensors):
        metadata["llama.vocab_size"] += 3

    path = write(configs()["llama"], change=change)
    refused(path, r"embed_tokens.weight is \[23, 16\] instead of \[26, 16\]")
