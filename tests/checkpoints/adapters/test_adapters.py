"""PEFT's files: merged by hand, and refused where they do not fit."""

import json
import shutil

import jax
import numpy as np
import pytest
from adapter_files import PREFIX, modules_of, write_adapter
from model_zoo import configs, forward, random_ids, random_params
from safetensors.numpy import load_file, save_file

from lt_mia_jax.checkpoints import load_model, load_pretrained, save_pretrained
from lt_mia_jax.checkpoints.adapters.base import reference_of, title_of
from lt_mia_jax.checkpoints.pretrained import weights_sha256
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import sha256_file
from lt_mia_jax.models import LanguageModel

TARGETS = {
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "down_proj"),
    "falcon-new": ("query_key_value",),
}


@pytest.fixture
def base(tmp_path):
    return saved("llama", tmp_path)


def saved(name, folder):
    save_pretrained(folder / "base", configs()[name], random_params(configs()[name]))
    return folder / "base"


@pytest.mark.parametrize("name", TARGETS)
def test_merged_by_hand(name, tmp_path):
    base = saved(name, tmp_path)
    added = write_adapter(
        tmp_path / "adapter", base, modules_of(base, *TARGETS[name]), alpha=3
    )
    shutil.copytree(base, tmp_path / "merged")
    tensors = load_file(base / "model.safetensors")
    for key, delta in added.items():
        tensors[key] = np.float32(tensors[key] + delta)
    save_file(tensors, tmp_path / "merged" / "model.safetensors")
    config, params = load_model(tmp_path / "adapter")
    again, expected = load_model(tmp_path / "merged")
    assert config == again
    ids = random_ids()
    found = forward(LanguageModel(config), params, ids)
    wanted = forward(LanguageModel(config), expected, ids)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    plain = forward(LanguageModel(config), load_model(base)[1], ids)
    assert np.abs(found - plain).max() > 0.01


def drop(end):
    def change(config, tensors):
        for name in [name for name in tensors if name.endswith(end)]:
            del tensors[name]

    return change


def fields(**values):
    return lambda config, tensors: config.update(values)


def tensors(**values):
    return lambda config, tensors: tensors.update(
        {
            f"{PREFIX}{name}": np.ones(shape, np.float32)
            for name, shape in values.items()
        }
    )


LAYER = "model.layers.0.self_attn"
BAD = {
    "method": (fields(peft_type="IA3"), "peft_type is 'IA3'"),
    "initial": (fields(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "tokens": (fields(trainable_token_indices=[3]), "trainable_token_indices"),
    "rank": (fields(r=3), r"q_proj has \[\(2, 16\), \(16, 2\)\], expected \[\(3, 16\)"),
    "no number": (fields(lora_alpha="4"), "lora_alpha = '4', expected a positive"),
    "pattern": (fields(rank_pattern={"(": 2}), "rank_pattern"),
    "magnitudes": (fields(use_dora=True), "magnitudes"),
    "half": (drop("layers.0.self_attn.q_proj.lora_B.weight"), "without both matrices"),
    "absent": (
        fields(target_modules=["q_proj", "v_proj"]),
        "without weights: .*v_proj",
    ),
    "foreign": (
        fields(target_modules=["v_proj"]),
        "not among target_modules: .*q_proj",
    ),
    "unknown": (
        tensors(**{"model.layers.7.mlp.up_proj.weight": (4, 4)}),
        "not in the base: model.layers.7.mlp.up_proj.weight",
    ),
    "shape": (
        tensors(**{f"{LAYER}.o_proj.weight": (4, 4)}),
        r"o_proj.weight is \[4, 4\] instead of",
    ),
    "infinite": (
        lambda config, tensors: tensors[f"{PREFIX}{LAYER}.q_proj.lora_A.weight"].fill(
            np.inf
        ),
        "NaN or infinite values in .*q_proj",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name, base, tmp_path):
    change, message = BAD[name]
    adapter = tmp_path / "adapter"
    write_adapter(adapter, base, modules_of(base, "q_proj"), change=change)
    with pytest.raises(InputError, match=message):
        load_model(adapter)


def test_pickles_are_never_opened(base, tmp_path):
    adapter = tmp_path / "adapter"
    write_adapter(adapter, base, modules_of(base, "q_proj"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model.safetensors.*never opened"):
        load_model(adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"but no adapter_config.json"):
        load_model(adapter)


def test_a_model_and_an_adapter_in_one_folder_are_ambiguous(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, modules_of(base, "q_proj"))
    shutil.copy(base / "model.safetensors", tmp_path / "adapter")
    with pytest.raises(InputError, match=r"a model .* and an adapter"):
        load_model(tmp_path / "adapter")


def test_the_base_is_looked_for(base, tmp_path):
    adapter, second = tmp_path / "adapter", tmp_path / "second"
    modules = modules_of(base, "q_proj")
    write_adapter(
        adapter, base, modules, change=fields(base_model_name_or_path="gone/away")
    )
    with pytest.raises(InputError, match=r"'?gone/away.* --reference"):
        load_model(adapter)
    config, _ = load_model(adapter, base=base)
    assert config == load_model(base)[0]
    write_adapter(
        second, base, modules, change=fields(base_model_name_or_path=str(adapter))
    )
    with pytest.raises(InputError, match="is an adapter too"):
        load_model(second)
    write_adapter(
        tmp_path / "third", base, modules, change=fields(base_model_name_or_path=None)
    )
    with pytest.raises(InputError, match="names no base model"):
        reference_of(str(tmp_path / "third"))


def test_names_hashes_and_tokenizer(base, tmp_path):
    adapter = tmp_path / "run" / "adapter"
    write_adapter(adapter, base, modules_of(base, "q_proj"))
    assert reference_of(str(adapter)) == str(base)
    assert reference_of(str(base)) is None
    assert title_of(str(adapter)) == "run/adapter, an adapter of base"
    assert title_of(str(base)) == "base"
    files = [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
    files.append(base / "model.safetensors")
    assert weights_sha256(adapter) == {file.name: sha256_file(file) for file in files}
    for words, folder in (("to be", base), ("not at all", adapter)):
        tokenizer = train_bpe([words] * 9, vocab_size=260)
        tokenizer.save_pretrained(str(folder))
        found = load_pretrained(adapter).tokenizer
        assert found.get_vocab() == tokenizer.get_vocab()


def test_save_like_an_adapter_takes_the_fields_of_its_base(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, modules_of(base, "q_proj"))
    config, params = load_model(tmp_path / "adapter")
    save_pretrained(tmp_path / "out", config, params, like=tmp_path / "adapter")
    one, other = (
        json.loads((folder / "config.json").read_text())
        for folder in (base, tmp_path / "out")
    )
    assert one == other


def test_a_base_saved_from_a_compiled_model(base, tmp_path):
    added = write_adapter(tmp_path / "adapter", base, modules_of(base, "q_proj"))
    before = load_model(tmp_path / "adapter")[1]
    tensors = load_file(base / "model.safetensors")
    wrapped = {f"_orig_mod.{name}": x for name, x in tensors.items()}
    save_file(wrapped, base / "model.safetensors")
    after = load_model(tmp_path / "adapter")[1]
    assert added
    jax.tree.map(np.testing.assert_array_equal, before, after)
