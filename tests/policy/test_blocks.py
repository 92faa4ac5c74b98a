"""Blocks that are removed leave a model that computes what the others did."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import jit
from transfer_models import CONFIGS, params_like, same_bits, tiny_model

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.policy.blocks import (
    INVALID,
    KeepPolicy,
    child,
    constrained_reward,
    describe_blocks,
    keep_log_probs,
    learn_keeps,
    n2n_reward,
    sample_keeps,
)
from lt_mia_jax.policy.reinforce import new_learner
from lt_mia_jax.trees import flatten, join_layers, parameter_count, split_layers

KEEPS = {
    "gpt2": [0, 1, 0, 1],
    "mamba": [1, 0, 1, 1],
    "rwkv": [0, 0, 1, 0],
    # recurrent, recurrent, attention, twice, and two more recurrent ones
    "griffin": [1, 0, 1, 0, 1, 1, 0, 1],
}


def passed(model, params, ids, stream, replaced):
    """Logits and the stream after the only layer, which may read another stream."""

    def enter(x, layer):
        return jnp.where((layer == 0) & replaced, stream, x)

    logits, streams = model.apply(params, ids, intervention=enter, capture=(1,))
    return logits, streams[1]


@pytest.mark.parametrize("name", KEEPS)
def test_a_child_computes_what_its_teacher_does_without_the_removed_blocks(name):
    model, keep = tiny_model(name), np.array(KEEPS[name], bool)
    params = params_like(model, 0)
    small = child(model.config, params, keep)
    student = LanguageModel(small.config, model.execution)
    shapes = {path: leaf.shape for path, leaf in flatten(student.shapes()).items()}
    assert {path: leaf.shape for path, leaf in flatten(small.params).items()} == shapes
    assert small.config.layers == keep.sum()
    ids = jnp.array([[3, 1, 4, 1, 5]])
    found = jit(student.apply)(small.params, ids)

    # A model of one layer for each kind of block; the stream passes from one to the
    # next, and the first one makes it.
    rest, layers = split_layers(params)
    programs = {}
    stream = jnp.zeros((1, 5, 8))
    for count, number in enumerate(np.flatnonzero(keep)):
        block = model.config.pattern[number % len(model.config.pattern)]
        if block not in programs:
            config = dataclasses.replace(model.config, layers=1, pattern=(block,))
            programs[block] = jit(partial(passed, LanguageModel(config)))
        own = join_layers(rest, [layers[number]], 1)
        expected, stream = programs[block](own, ids, stream, count > 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_child_with_all_blocks_is_its_teacher():
    config = CONFIGS["griffin"]
    params = params_like(tiny_model("griffin"), 0)
    found = child(config, params, [True] * 8)
    assert found.config is config
    assert same_bits(found.params, params)
    assert found.size == parameter_count(params)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_layers_that_are_joined_split_again(name, slots):
    rest, layers = split_layers(params_like(tiny_model(name), 1))
    if name == "griffin":
        layers = [layers[0]] * 5  # a slot holds one kind
    again, found = split_layers(join_layers(rest, layers, slots))
    assert same_bits((again, found), (rest, layers))


def test_a_size_is_what_the_removed_blocks_leave():
    config = CONFIGS["griffin"]
    params = params_like(tiny_model("griffin"), 0)
    keep = np.array(KEEPS["griffin"], bool)
    shares = describe_blocks(config)[:, -1].astype(float)
    whole = parameter_count(params)
    found = child(config, params, keep)
    assert found.size == pytest.approx(whole * (1 - shares[~keep].sum()), rel=1e-6)
    assert found.size == sum(np.size(leaf) for leaf in jax.tree.leaves(found.params))


def test_blocks_are_described_by_kind_place_and_size():
    expected = {
        "gpt2": [[1, 0, 0, 0, n / 4, np.log2(3), np.log2(5)] for n in range(4)],
        "mamba": [[0, 1, 0, 0, n / 4, np.log2(17), 0] for n in range(4)],
        "rwkv": [[0, 0, 1, 0, n / 4, 1, np.log2(5)] for n in range(4)],
    }
    for name, rows in expected.items():
        np.testing.assert_allclose(describe_blocks(CONFIGS[name])[:, :-1], rows, 1e-6)
    kinds = describe_blocks(CONFIGS["griffin"])[:, :4].argmax(axis=1)
    assert kinds.tolist() == [3, 3, 0, 3, 3, 0, 3, 3]


def test_nothing_kept_and_a_wrong_number_of_choices_are_refused():
    params = params_like(tiny_model("gpt2"), 0)
    for keep in ([False] * 4, [True] * 3, [True] * 5):
        with pytest.raises(InputError, match="of 4, at least one"):
            child(CONFIGS["gpt2"], params, keep)


def test_the_reward_is_zero_without_compression_and_grows_with_it():
    assert n2n_reward(1.0, 0.9, 100, 100) == 0
    sizes = np.linspace(10, 100, 7)
    found = n2n_reward(np.full(7, 0.6), 0.8, sizes, 100.0)
    # C (2 - C) with C = 1 - s is 1 - s^2.
    np.testing.assert_allclose(found, 0.75 * (1 - (sizes / 100) ** 2))
    assert INVALID < n2n_reward(0.0, 0.9, 100, 100)


def test_a_violated_constraint_costs_more_with_each_epoch():
    found = [constrained_reward(0.8, epoch) for epoch in range(20)]
    assert found[0] == 0.8
    assert (np.diff(found[:16]) < 0).all()
    assert found[15:] == [-1.0] * 5
    e = (1 - 5 / 15) ** 4
    assert found[5] == pytest.approx((e - 1) + e * 0.8)


def test_choices_are_drawn_with_the_probability_that_is_scored():
    logits = jnp.array([2.0, -1.0, 0.0])
    keep = np.asarray(sample_keeps(logits, jax.random.key(0), 4000))
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(keep.mean(axis=0), p, atol=0.03)
    scored = keep_log_probs(logits, jnp.asarray(keep[:50]))
    expected = np.log(np.where(keep[:50], p, 1 - p))
    np.testing.assert_allclose(scored, expected, atol=1e-6)


def test_a_policy_learns_which_block_matters_and_reads_both_directions():
    """One policy for teachers of any depth; rewards ask for the first block only."""
    policy, optimizer = KeepPolicy(layers=1, hidden=8), optax.adam(3e-2)
    blocks = jnp.asarray(describe_blocks(CONFIGS["griffin"]))
    params = policy.init(jax.random.key(0), blocks)["params"]

    @jit
    def step(learner, key):
        logits = policy.apply({"params": learner.params}, blocks)
        keep = sample_keeps(logits, key)
        rewards = keep[:, 0] - keep[:, 1:].mean(axis=1)
        return learn_keeps(
            learner, blocks, keep, rewards, policy=policy, optimizer=optimizer
        )

    learner = new_learner(params, optimizer)
    for key in jax.random.split(jax.random.key(1), 120):
        learner = step(learner, key)
    logits = policy.apply({"params": learner.params}, blocks)
    assert float(logits[0]) > 1
    assert float(logits[1:].mean()) < -1
    shorter = policy.apply({"params": learner.params}, blocks[:3])
    assert shorter.shape == (3,)
    # The first choice depends on the last block, the last one on the first.
    jacobian = jax.jacobian(lambda x: policy.apply({"params": params}, x))(blocks)
    reach = np.abs(jacobian).sum(axis=-1)
    assert (reach > 0).all()
