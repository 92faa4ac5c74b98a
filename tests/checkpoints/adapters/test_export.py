"""Adapters that we write: read back they are the merged model, also for PEFT."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from family_zoo import PLAIN
from model_zoo import configs, forward, random_ids, random_params

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.checkpoints.adapters.export import clear_adapter, save_adapter
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.trees import flatten

CONFIG = LoraConfig(rank=2, alpha=3.0)


def written(name, folder, key, targets=()):
    """Adapters of a model, written to `folder / "adapter"`, and the merged model."""
    config, params = configs()[name], random_params(configs()[name])
    save_pretrained(folder / "base", config, params)
    chosen = LoraConfig(rank=2, alpha=3.0, targets=targets)
    rng = np.random.default_rng(0)
    adapters = {
        path: (a, jnp.asarray(0.3 * rng.normal(size=b.shape), jnp.float32))
        for path, (a, b) in lora.init(key, params, chosen).items()
    }
    save_adapter(
        folder / "adapter",
        config,
        adapters,
        base=str(folder / "base"),
        rank=2,
        alpha=3.0,
    )
    return config, lora.merge(params, adapters, chosen.scale)


@pytest.mark.parametrize("name", sorted({*PLAIN.values()} - {"mamba"}))
def test_every_family_survives(name, tmp_path, key):
    config, merged = written(name, tmp_path, key)
    again, found = load_model(tmp_path / "adapter")
    assert again == config
    merged, found = flatten(merged), flatten(found)
    for path, leaf in merged.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("name", "targets", "modules"),
    [
        ("gpt2", ("*/mixer/value/kernel",), ["attn.c_attn"]),
        (
            "llama",
            ("head/kernel", "*/mixer/key/kernel"),
            ["lm_head", "self_attn.k_proj"],
        ),
        (
            "recurrent_gemma",  # the tail has layers of the same names
            ("periods/*/feed_forward/up/kernel",),
            [f"model.layers.{i}.mlp_block.up_proj" for i in range(3)],
        ),
    ],
)
def test_chosen_targets_survive(name, targets, modules, tmp_path, key):
    _, merged = written(name, tmp_path, key, targets)
    content = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert content["target_modules"] == modules
    found = flatten(load_model(tmp_path / "adapter")[1])
    for path, leaf in flatten(merged).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)


def test_what_peft_cannot_express_is_said(tmp_path, key, caplog):
    with caplog.at_level(logging.WARNING):
        written("mamba", tmp_path, key)
    assert "PEFT cannot adapt" in caplog.text
    assert not (tmp_path / "adapter").exists()


def test_an_earlier_adapter_goes(tmp_path, key):
    written("llama", tmp_path, key)
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    clear_adapter(tmp_path / "adapter")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["notes.txt"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "gpt_neox", "bloom"])
def test_peft_loads_it(name, tmp_path, key):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    peft = pytest.importorskip("peft", reason="needs the extra 'parity'")
    from transformers import AutoModelForCausalLM

    config, merged = written(name, tmp_path, key)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = random_ids()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids, dtype=torch.long)).logits
    found = forward(LanguageModel(config), merged, ids)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
