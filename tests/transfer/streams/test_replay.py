"""Replay buffers: how many items are kept, of which task, and how they are drawn."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit

from lt_mia_jax.transfer.streams import replay
from lt_mia_jax.transfer.streams.replay import EMPTY, mixed_batch, remember, sample


def items(start, rows=40):
    ids = np.arange(start, start + rows)
    return {"ids": np.stack([ids, -ids], 1), "row": ids}


def filled(share=0.2):
    buffer = EMPTY
    for task in range(3):
        key = jax.random.key(task)
        buffer = remember(buffer, items(100 * task), key, share=share)
    return buffer


@pytest.mark.parametrize(
    ("share", "capacity", "kept"),
    [(0.0, 9, 0), (0.002, 9, 0), (0.02, 9, 1), (0.2, 9, 8), (1.0, 9, 40), (None, 9, 9)],
)
def test_the_share_or_else_the_capacity_decides_how_many_are_kept(
    share, capacity, kept
):
    buffer = remember(
        EMPTY, items(0), jax.random.key(0), share=share, capacity=capacity
    )
    assert buffer.size == kept
    if kept:
        rows = np.asarray(buffer.items["row"])
        assert len(set(rows)) == kept
        assert set(rows) <= set(range(40))
        np.testing.assert_array_equal(buffer.items["ids"][:, 1], -rows)


def test_capacity_beyond_the_task_keeps_all_of_it():
    buffer = remember(EMPTY, items(0), jax.random.key(0))
    assert sorted(np.asarray(buffer.items["row"])) == list(range(40))


def test_tasks_are_numbered_and_earlier_items_stay():
    buffer = filled()
    np.testing.assert_array_equal(buffer.task, np.repeat([0, 1, 2], 8))
    np.testing.assert_array_equal(
        np.asarray(buffer.items["row"]) // 100, np.repeat([0, 1, 2], 8)
    )
    first = remember(EMPTY, items(0), jax.random.key(0), share=0.2)
    np.testing.assert_array_equal(buffer.items["row"][:8], first.items["row"])


def test_draws_are_uniform_over_items_and_deterministic_in_the_key():
    buffer, draw = filled(), jit(sample, static_argnums=2)
    rows = np.asarray(draw(buffer, jax.random.key(5), 24_000)["row"])
    counts = np.array([(rows == row).sum() for row in np.asarray(buffer.items["row"])])
    assert counts.sum() == 24_000
    assert (abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    again = np.asarray(draw(buffer, jax.random.key(5), 24_000)["row"])
    other = np.asarray(draw(buffer, jax.random.key(6), 24_000)["row"])
    np.testing.assert_array_equal(rows, again)
    assert (rows != other).any()


def test_half_of_a_mixed_batch_is_replayed():
    batch = items(900, rows=6)
    mixed = jit(mixed_batch)(batch, filled(), jax.random.key(1))
    np.testing.assert_array_equal(mixed["row"][:6], batch["row"])
    assert mixed["ids"].shape == (12, 2)
    assert set(np.asarray(mixed["row"][6:])) <= set(
        np.asarray(filled().items["row"]).tolist()
    )


def test_without_stored_items_the_batch_is_the_same_object():
    batch = items(0)
    assert mixed_batch(batch, EMPTY, jax.random.key(0)) is batch
    assert remember(EMPTY, batch, jax.random.key(0), share=0.0) is EMPTY


def test_shares_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="share = 2"):
        remember(EMPTY, jnp.arange(3), jax.random.key(0), share=2.0)
    with pytest.raises(ValueError, match="capacity = -1"):
        remember(EMPTY, jnp.arange(3), jax.random.key(0), capacity=-1)


def test_examples_run():
    assert doctest.testmod(replay).failed == 0
