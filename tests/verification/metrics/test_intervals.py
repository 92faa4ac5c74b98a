import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import intervals


def test_intervals_of_any_aggregate():
    rng = np.random.default_rng(3)
    values = rng.normal(size=200)
    found = intervals.bootstrap_interval(np.mean, values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.value == values.mean()
    np.testing.assert_allclose(
        [found.low, found.high], found.value + half * np.array([-1, 1]), atol=0.03
    )
    assert found == intervals.bootstrap_interval(np.mean, values)
    assert found != intervals.bootstrap_interval(np.mean, values, seed=1)
    # A paired difference is narrow where the items' own spread cancels.
    after = values + 0.01 * rng.normal(size=200)
    gap = lambda a, b: float((a - b).mean())  # noqa: E731
    paired = intervals.bootstrap_interval(lambda g: gap(*g), (values, after))
    apart = intervals.bootstrap_interval(gap, values, after)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    # Pairs stay pairs: a perfect correlation is perfect on every draw.
    twice = intervals.bootstrap_interval(
        lambda g: float(np.corrcoef(*g)[0, 1]), (values, 2 * values), n_boot=50
    )
    np.testing.assert_allclose([twice.low, twice.value, twice.high], 1, rtol=1e-12)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        found = intervals.bootstrap_interval(np.mean, rng.normal(size=50), n_boot=200)
        hits += found.low <= 0 <= found.high
    assert hits >= 85


def test_bad_input_is_told():
    ok, few = np.ones(3), np.ones(2)
    with pytest.raises(InputError, match="numbers of items differ"):
        intervals.bootstrap_interval(np.mean, (ok, few))
    with pytest.raises(InputError, match="has 1 items"):
        intervals.bootstrap_interval(np.mean, np.ones(1))
    with pytest.raises(InputError, match="the aggregate is nan"):
        intervals.bootstrap_interval(np.mean, np.array([1.0, np.nan, 2.0]))
    with pytest.raises(InputError, match="n_boot=0"):
        intervals.bootstrap_interval(np.mean, ok, n_boot=0)
