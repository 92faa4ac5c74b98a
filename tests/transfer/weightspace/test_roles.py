"""Roles and layers of the parameters of every family."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.weightspace.roles import role
from lt_mia_jax.trees import (
    flatten,
    layer_count,
    layer_numbers,
    per_layer,
    slot_count,
    split_layers,
)

KINDS = (
    "gpt2",
    "llama",
    "mamba",
    "rwkv",
    "recurrent_gemma",
    "griffin-preset",
    "gemma3_text",
    "opt",
    "qwen3",
)
"""Every kind of layer and of stack: with a tail, all tail, a unit of two."""


def numbered(config):
    """Parameters whose values in layer n are all n, and -1 outside layers."""
    tree = LanguageModel(config).shapes()
    whole = config.layers - len(config.tail)
    flat = {}
    for path, leaf in flatten(tree).items():
        value = np.full(leaf.shape, -1.0, np.float32)
        parts = path.split("/")
        if parts[0] == "periods":
            slot = int(parts[1][5:])
            for period in range(config.periods):
                value[period] = period * len(config.pattern) + slot
        elif parts[0].startswith("tail"):
            value[...] = whole + int(parts[0][5:])
        flat[path] = value
    return jax.tree.unflatten(jax.tree.structure(tree), flat.values())


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_a_role_and_every_layer_its_leaves(name):
    config = configs()[name]
    params = numbered(config)
    roles = Counter(role(path) for path in flatten(params))
    assert not roles["other"]
    assert min(roles["mixer"], roles["embedding"]) > 0
    assert layer_count(params) == config.layers
    assert slot_count(params) == len(config.pattern)
    for path, held in layer_numbers(params).items():
        leaf = np.asarray(flatten(params)[path])
        stacked = leaf.reshape(len(held), -1)
        assert (stacked == held[:, None]).all()
        assert role(path) in ("mixer", "feed_forward", "norm", "recurrence")
    weights = np.arange(config.layers, dtype=np.float32)
    spread = per_layer(params, weights, lambda path: -1.0)
    for path, leaf in flatten(params).items():
        found = flatten(spread)[path]
        assert found.ndim == leaf.ndim
        assert (np.asarray(found) == leaf).all()
    rest, layers = split_layers(params)
    assert all((leaf == -1).all() for leaf in jax.tree.leaves(rest))
    for number, layer in enumerate(layers):
        assert all((leaf == number).all() for leaf in jax.tree.leaves(layer))


def test_constants_of_recurrences_and_norms_are_told_apart():
    expected = {
        "periods/slot_0/mixer/log_decay": "recurrence",
        "periods/slot_0/mixer/skip": "recurrence",
        "periods/slot_0/mixer/step/bias": "recurrence",
        "periods/slot_0/mixer/step/up/kernel": "mixer",
        "periods/slot_0/feed_forward/mix_key": "recurrence",
        "tail_1/mixer/recurrence/decay": "recurrence",
        "tail_1/mixer/recurrence/decay_gate/bias": "mixer",
        "tail_1/mixer/conv/taps": "mixer",
        "periods/slot_0/mixer/query_norm/scale": "norm",
        "periods/slot_0/mixer_output_norm/scale": "norm",
        "embedding_norm/bias": "norm",
        "final_norm/scale": "norm",
        "embedding/positions": "embedding",
        "embedding_projection/kernel": "embedding",
        "head_projection/kernel": "head",
        "head/bias": "head",
        "adapter/a": "other",
    }
    assert {path: role(path) for path in expected} == expected


def test_weights_may_be_traced_and_must_be_as_many_as_layers():
    params = numbered(configs()["llama"])
    count = layer_count(params)

    @jax.jit
    def scaled(weights):
        return jax.tree.map(jnp.multiply, params, per_layer(params, weights, len))

    weights = np.linspace(1, 2, count, dtype=np.float32)
    flat = flatten(scaled(weights))
    for path, held in layer_numbers(params).items():
        np.testing.assert_array_equal(
            flat[path].reshape(len(held), -1)[:, 0], held * weights[held]
        )
    assert float(flat["embedding/tokens"][0, 0]) == -len("embedding/tokens")
    with pytest.raises(ValueError, match=rf"weights are \[1\]; the model has {count}"):
        per_layer(params, [1.0], len)
