"""Differences between versions, and losses on the line between two models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_transforms import flat
from quick_compile import jit
from transfer.weightspace.weight_trees import grid

from lt_mia_jax.transfer.weightspace.difference import loss_barrier, transfer_diff
from lt_mia_jax.trees import flatten


def test_what_fine_tuning_changed_is_added_to_another_base():
    target, base, tuned = grid(0), grid(1), grid(2)
    found = jit(transfer_diff)(target, base, tuned, scale=0.5)
    expected = np.float64(flat(target)) + 0.5 * (flat(tuned) - np.float64(flat(base)))
    np.testing.assert_allclose(flat(found), expected, rtol=1e-6)
    chosen = flatten(
        transfer_diff(target, base, tuned, include=lambda path: path.startswith("head"))
    )
    for name, leaf in flatten(target).items():
        moved = (chosen[name] != leaf).any()
        assert moved == (name == "head/kernel")


def test_the_same_base_gives_the_fine_tune_and_scale_zero_the_target():
    rng = np.random.default_rng(0)
    base = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), grid(1)
    )
    tuned = jax.tree.map(lambda x: x * 1.37 + 1e-6, base)
    same = transfer_diff(base, base, tuned)
    jax.tree.map(np.testing.assert_array_equal, same, tuned)
    kept = transfer_diff(grid(3), base, tuned, scale=0.0)
    jax.tree.map(np.testing.assert_array_equal, kept, grid(3))


@pytest.mark.parametrize("rows", [9, 4])
def test_only_common_rows_of_a_vocabulary_move(rows):
    rng = np.random.default_rng(rows)

    def model(rows):
        width = rng.normal(size=(3, 3))
        tree = {
            "embedding": {"tokens": jnp.asarray(rng.normal(size=(rows, 3)))},
            "tail_0": {"mixer": {"query": {"kernel": jnp.asarray(width)}}},
        }
        kernel, bias = rng.normal(size=(3, rows)), rng.normal(size=rows)
        return {
            **tree,
            "head": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
        }

    target, base, tuned = model(rows), model(6), model(6)
    found = transfer_diff(target, base, tuned)
    common = min(rows, 6)
    for name, axis in (("embedding/tokens", 0), ("head/kernel", 1), ("head/bias", 0)):
        leaf, was = (np.moveaxis(flatten(t)[name], axis, 0) for t in (found, target))
        start, end = (np.moveaxis(flatten(t)[name], axis, 0) for t in (base, tuned))
        step = end[:common] - start[:common]
        np.testing.assert_allclose(leaf[:common], was[:common] + step, rtol=1e-5)
        np.testing.assert_array_equal(leaf[common:], was[common:])
    deeper = {**target, "tail_1": target["tail_0"]}
    with pytest.raises(ValueError, match=r"do not both have .'tail_1/mix"):
        transfer_diff(deeper, base, tuned)
    wider = {**target, "tail_0": {"mixer": {"query": {"kernel": jnp.zeros((3, 4))}}}}
    with pytest.raises(ValueError, match="only vocabularies may differ"):
        transfer_diff(wider, base, tuned)
    narrow = {**target, "embedding": {"tokens": jnp.zeros((rows, 2))}}
    with pytest.raises(ValueError, match=r"embedding/tokens is \[\d, 2\] in the tar"):
        transfer_diff(narrow, base, tuned)
    with pytest.raises(ValueError, match="tree 2 differs"):
        transfer_diff(target, base, model(7))


def test_the_barrier_is_what_a_loss_exceeds_the_line_by():
    def loss(p):
        return jnp.square(jnp.square(p["w"]) - 1) + 0.5 * p["w"]

    ends = {"w": jnp.float32(-1.0)}, {"w": jnp.float32(1.0)}
    found = loss_barrier(*ends, loss)
    w = np.linspace(-1, 1, 11)
    np.testing.assert_allclose(found.losses, (w**2 - 1) ** 2 + 0.5 * w, atol=1e-6)
    assert found.height == pytest.approx(1.0, abs=1e-6)
    valley = loss_barrier(*ends, lambda p: jnp.square(p["w"]))
    assert valley.height <= 0
    with pytest.raises(ValueError, match="tree 2 differs"):
        loss_barrier(ends[0], {"v": ends[1]["w"]}, loss)
