"""Fewer tokens and fewer layers, and the model still computes what it should."""

import dataclasses

import jax
import numpy as np
import pytest
from quick_compile import jit
from transfer_models import CONFIGS, params_like, tiny_model

from lt_mia_jax.errors import InputError
from lt_mia_jax.transfer.weightspace.trim import (
    keep_tokens,
    matched_layers,
    renumbered,
    shrink_depth,
    trim_vocab,
)
from lt_mia_jax.trees import flatten, split_layers

IDS = np.array([0, 2, 3, 7, 11, 19])


def test_tokens_are_kept_if_one_language_uses_them_often_enough():
    probs = np.random.default_rng(0).dirichlet(np.full(30, 0.3), size=3)
    probs[1, 4] = 0.01  # exactly the threshold
    expected = [
        v for v in range(30) if max(row[v] for row in probs) >= 0.01 or v in (28, 5)
    ]
    found = trim_vocab(probs, 0.01, keep_ids=[28, 5, 28])
    assert found.tolist() == expected
    assert 4 in expected
    assert len(expected) < 30


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_trimmed_model_gives_the_logits_of_the_tokens_that_are_left(name):
    model = dataclasses.replace(
        tiny_model(name), config=dataclasses.replace(CONFIGS[name], layers=2)
    )
    params = params_like(model, 0)
    config, smaller = keep_tokens(model.config, params, IDS)
    assert config.vocab_size == len(IDS)
    trimmed = dataclasses.replace(model, config=config)
    shapes = jax.tree.map(lambda leaf: leaf.shape, trimmed.shapes())
    assert jax.tree.map(lambda leaf: leaf.shape, smaller) == shapes
    tokens = IDS[np.random.default_rng(1).integers(len(IDS), size=(2, 5))]
    whole = np.asarray(jit(model.apply)(params, tokens))[..., IDS]
    found = jit(trimmed.apply)(smaller, renumbered(tokens, IDS))
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_tokens_are_renumbered():
    table = {old: new for new, old in enumerate(IDS.tolist())}
    tokens = np.arange(25).reshape(5, 5)
    expected = [[table.get(t, 4) for t in row] for row in tokens.tolist()]
    assert renumbered(tokens, IDS, unknown=4).tolist() == expected
    for wrong in ([3, 3], [4, 2], [20], [-1, 2], []):
        with pytest.raises(InputError, match="expected ascending ones below 20"):
            keep_tokens(CONFIGS["gpt2"], {}, np.array(wrong, int))


@pytest.mark.parametrize(
    ("name", "k", "kept"),
    [
        ("gpt2", 2, [1, 3]),
        ("mamba", 3, [2]),
        ("rwkv", 1, [0, 1, 2, 3]),
        ("griffin", 2, [3, 4, 5, 6, 7]),
    ],
)
def test_every_kth_unit_is_kept(name, k, kept):
    model = tiny_model(name)
    params = params_like(model, 0)
    config, smaller = shrink_depth(model.config, params, k)
    assert config.layers == len(kept)
    shapes = dataclasses.replace(model, config=config).shapes()
    for path, leaf in flatten(shapes).items():
        assert flatten(smaller)[path].shape == leaf.shape
    rest, found = split_layers(smaller)
    _, before = split_layers(params)
    for number, layer in zip(kept, found, strict=True):
        for path, leaf in flatten(layer).items():
            np.testing.assert_array_equal(leaf, flatten(before[number])[path])
    assert rest.keys() == split_layers(params)[0].keys()
    # After k units of the teacher as after one of the student.
    pairs = matched_layers(model.config, config, k)
    assert pairs[0] == (0, 0)
    assert pairs[-1] == (kept[-1] + 1, len(found))
    unit = len(config.pattern)
    for teacher, student in pairs[1:]:
        assert teacher - 1 == kept[student - 1]
    assert all(s % unit == 0 for _, s in pairs[: config.periods + 1])


def test_fewer_units_than_steps_are_refused():
    params = params_like(tiny_model("griffin"), 0)
    for k in (0, 3):
        with pytest.raises(InputError, match="of 2 units"):
            shrink_depth(CONFIGS["griffin"], params, k)
