import numpy as np
import pytest

from lt_mia_jax.data.batches import batch_indices
from lt_mia_jax.errors import InputError


def visited(batches, epoch):
    steps = range(
        epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch
    )
    rows = np.concatenate([batches[step].rows for step in steps])
    weight = np.concatenate([batches[step].weight for step in steps])
    return rows[weight > 0]


@pytest.mark.parametrize(("n", "size"), [(1, 4), (7, 3), (8, 4), (100, 16), (3, 8)])
def test_each_epoch_visits_every_row_once(n, size):
    batches = batch_indices(n, size, seed=1, epochs=3)
    assert len(batches) == 3 * -(-n // size)
    for epoch in range(3):
        assert sorted(visited(batches, epoch)) == list(range(n))
    for batch in batches:
        assert batch.rows.shape == batch.weight.shape == (size,)
        assert (batch.rows.dtype, batch.weight.dtype) == (np.int64, np.float32)
        assert 0 <= batch.rows.min() <= batch.rows.max() < n
    assert sum(batch.weight.sum() for batch in batches) == 3 * n


def test_order_is_new_each_epoch_and_each_seed():
    batches = batch_indices(50, 8, seed=3, epochs=2)
    # Neighboring seeds must not share epochs shifted by one.
    other = batch_indices(50, 8, seed=4, epochs=2)
    orders = [visited(b, epoch).tolist() for b in (batches, other) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != list(range(50)) for order in orders)


def test_any_step_is_the_same_whenever_it_is_asked_for():
    forwards = list(batch_indices(23, 5, seed=9, epochs=4))
    fresh = batch_indices(23, 5, seed=9, epochs=4)
    for step in reversed(range(len(fresh))):
        np.testing.assert_array_equal(fresh[step].rows, forwards[step].rows)
        np.testing.assert_array_equal(fresh[step].weight, forwards[step].weight)


def test_more_epochs_do_not_change_the_first_ones():
    short, long = (batch_indices(23, 5, seed=9, epochs=e) for e in (1, 6))
    for step in range(len(short)):
        np.testing.assert_array_equal(short[step].rows, long[step].rows)


def test_orders_are_uniform():
    firsts = [batch_indices(4, 1, seed=seed)[0].rows[0] for seed in range(400)]
    # Binomial(400, 1/4) has standard deviation 8.7.
    assert np.abs(np.bincount(firsts, minlength=4) - 100).max() < 40


def test_without_shuffling():
    batches = batch_indices(5, 2, seed=0, shuffle=False)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 0]]
    assert [batch.weight.tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize("seed", [-1, 0, 2**40, 2**70])
def test_any_integer_is_a_seed(seed):
    assert sorted(visited(batch_indices(9, 4, seed=seed), 0)) == list(range(9))


def test_outside_the_run():
    batches = batch_indices(4, 2, seed=0)
    for step in (-1, 2):
        with pytest.raises(IndexError):
            batches[step]
    assert len(batch_indices(4, 2, seed=0, epochs=0)) == 0


@pytest.mark.parametrize(
    ("n", "size", "changes"),
    [
        (0, 2, {}),
        (3, 0, {}),
        (3, 2, {"epochs": -1}),
    ],
)
def test_sizes_that_do_not_fit(n, size, changes):
    with pytest.raises(InputError):
        batch_indices(n, size, seed=0, **changes)
