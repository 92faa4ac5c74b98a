import dataclasses

import pytest
from model_zoo import configs

from lt_mia_jax.checkpoints.hf_config import write_config
from lt_mia_jax.checkpoints.rules import expand, locate
from lt_mia_jax.checkpoints.tables import TABLES
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.trees import flatten


@pytest.mark.parametrize("name", configs())
def test_every_leaf_row_is_filled_exactly_once(name):
    config = configs()[name]
    kind, _ = write_config(config)
    shapes = flatten(LanguageModel(config).shapes())
    groups = expand(TABLES[kind](config), config, shapes)
    filled = [p for group in groups for a in group for p in a.places]
    rows = {
        (path, row)
        for path, leaf in shapes.items()
        for row in (range(leaf.shape[0]) if path.startswith("periods/") else [None])
    }
    assert len(filled) == len(rows)
    assert set(filled) == rows


def test_stored_names_are_unique():
    config = configs()["llama-biases"]
    leaves = flatten(LanguageModel(config).shapes())
    groups = expand(TABLES["llama"](config), config, leaves)
    names = [a.name for group in groups for a in group]
    assert len(names) == len(set(names))
    assert "model.layers.1.self_attn.q_proj.bias" in names


def test_a_leaf_without_a_rule_is_a_defect():
    config = configs()["gpt2"]
    with pytest.raises(AssertionError, match="no rule for"):
        expand(TABLES["gpt2"](config), config, ["embedding/tokens", "novel/kernel"])


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
