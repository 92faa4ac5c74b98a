import dataclasses
import itertools
import json

import numpy as np
import pytest
from model_zoo import configs, random_params
from safetensors.numpy import load_file, save_file

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.hf_config import write_config
from lt_mia_jax.checkpoints.rules import expand, locate
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.trees import flatten


@pytest.mark.parametrize("name", configs())
def test_every_leaf_row_is_filled_exactly_once(name):
    config = configs()[name]
    kind, _ = write_config(config)
    shapes = flatten(LanguageModel(config).shapes())
    groups = expand(FAMILIES[kind].table(config), config, shapes)
    filled = [p for group in groups for a in group for p in a.places]
    # Counted in elements: some parts are a layer's, some a head's.
    count = dict.fromkeys(shapes, 0)
    for place in filled:
        count[place.path] += np.zeros(shapes[place.path].shape)[place.part].size
    assert len(filled) == len(set(filled))
    assert count == {path: leaf.size for path, leaf in shapes.items()}


def test_stored_names_are_unique():
    config = configs()["llama-biases"]
    leaves = flatten(LanguageModel(config).shapes())
    groups = expand(FAMILIES["llama"].table(config), config, leaves)
    names = [a.name for group in groups for a in group]
    assert len(names) == len(set(names))
    assert "model.layers.1.self_attn.q_proj.bias" in names


def test_a_leaf_without_a_rule_is_a_defect():
    config = configs()["gpt2"]
    with pytest.raises(AssertionError, match="no rule for"):
        expand(FAMILIES["gpt2"].table(config), config, {"novel/kernel": np.zeros(3)})


def test_layers_land_in_period_slot_or_tail():
    config = configs()["llama"]
    first = config.pattern[0]
    config = dataclasses.replace(config, pattern=(first, first, first), layers=8)
    found = [locate(config, layer) for layer in range(8)]
    assert found == [
        ("periods/slot_0/", 0),
        ("periods/slot_1/", 0),
        ("periods/slot_2/", 0),
        ("periods/slot_0/", 1),
        ("periods/slot_1/", 1),
        ("periods/slot_2/", 1),
        ("tail_0/", None),
        ("tail_1/", None),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 2**24}, "an embedding of 16777216 x 16 in"),
        ({"num_hidden_layers": 1024}, "1024 layers in"),
    ],
)
def test_a_model_that_the_file_cannot_hold_is_refused_before_it_is_built(
    tmp_path, monkeypatch, change, words
):
    config = configs()["llama"]
    save_pretrained(tmp_path, config, random_params(config))
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | change))
    monkeypatch.setattr(LanguageModel, "shapes", None)
    with pytest.raises(InputError, match=f"does not match its config.*{words}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma", "mamba", "rwkv", "recurrent_gemma", "falcon-new"]
)
def test_every_size_of_a_config_at_its_largest_gives_one_line(tmp_path, name):
    config = configs()[name]
    save_pretrained(tmp_path, config, random_params(config))
    data = json.loads((tmp_path / "config.json").read_text())
    sizes = [n for n, x in data.items() if type(x) is int and not n.endswith("_id")]
    assert len(sizes) >= 4
    for size, value in itertools.product(sizes, (2**10, 2**24)):
        (tmp_path / "config.json").write_text(json.dumps(data | {size: value}))
        try:
            loaded, _ = load_model(tmp_path)
        except InputError:
            continue
        # Of no parameter's shape, such as the context of a rotary model.
        assert loaded.context == value or size == "attention_window_size", size


def renamed(directory, config, rename):
    """Save a model and rename its tensors; the parameters by path."""
    params = random_params(config)
    save_pretrained(directory, config, params)
    path = directory / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return flatten(params)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["gpt2", "falcon-new", "mamba", "opt-post-norm"])
def test_names_of_wrapped_models_are_read(tmp_path, name, wrapper):
    expected = renamed(tmp_path, configs()[name], lambda n: wrapper + n)
    found = flatten(load_model(tmp_path)[1])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_a_prefix_of_some_names_only_is_not_left_out(tmp_path):
    first = "model.embed_tokens.weight"
    renamed(tmp_path, configs()["llama"], lambda n: f"module.{n}" if n == first else n)
    with pytest.raises(InputError, match=rf"unexpected \['module\.{first}'\]"):
        load_model(tmp_path)


def test_long_lists_of_names_are_cut(tmp_path):
    renamed(tmp_path, gpt2_like(23, 16, 40, 4, 12), lambda n: f"prefix.{n}")
    with pytest.raises(InputError, match=r"\] and 479 more; unexpected \[") as caught:
        load_model(tmp_path)
    assert str(caught.value).count("prefix.") == 5
    assert len(str(caught.value)) < 1000
