"""Methods that train some of the weights."""

import dataclasses

import numpy as np
from unlearning_world import run, start

from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import transforms
from lt_mia_jax.unlearning.methods import METHODS


def test_masked_weights_keep_every_bit(tmp_path):
    result = run(tmp_path, "causal_layer_unlearning")
    mask = flatten(transforms.layer_mask(start(), ["*/feed_forward/*"], [0]))
    before, after = flatten(start()), flatten(result.params)
    for name, old in before.items():
        still = ~np.broadcast_to(np.asarray(mask[name]), old.shape)
        np.testing.assert_array_equal(np.asarray(after[name])[still], old[still])
    moved = [n for n in before if (np.asarray(after[n]) != before[n]).any()]
    assert moved
    assert all("/feed_forward/" in name for name in moved)


def test_traced_layers_are_the_ones_that_move(tmp_path):
    method = dataclasses.replace(METHODS["causal_layer_unlearning"], layers="trace")
    before, after = flatten(start()), flatten(run(tmp_path, method).params)
    moved = set()
    for name in before:
        changed = np.asarray(after[name]) != np.asarray(before[name])
        if changed.any():
            assert "/feed_forward/" in name
            moved |= set(np.flatnonzero(changed.reshape(len(changed), -1).any(axis=1)))
    assert len(moved) == 1  # a third of two layers, at least one
