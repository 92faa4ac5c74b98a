import math
import warnings

import numpy as np
import pytest
from oracle_unlearning_metrics import (
    distance_oracle,
    ks_by_orders,
    ks_by_paths,
    ks_exact,
    ks_log_gamma,
)

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import intervals, tofu


def samples(n, m=None, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=n), rng.lognormal(shift, size=m or n)


def test_truth_ratio_by_hand():
    correct, wrong = np.log([2.0, 4.0]), np.log([[2.0, 8.0], [1.0, 1.0]])
    # Geometric means of the wrong probabilities: 1/4 and 1.
    ratio = tofu.truth_ratio(correct, wrong)
    np.testing.assert_allclose(ratio, [(1 / 4) / (1 / 2), 1 / (1 / 4)], rtol=1e-9)
    np.testing.assert_allclose(tofu.forget_truth_score(ratio), [1 / 2, 1 / 4])
    np.testing.assert_allclose(tofu.retain_truth_score(ratio), [1 / 2, 0])
    assert tofu.forget_truth_score(np.zeros(1)).tolist() == [0]


def test_truth_ratio_of_a_collapsed_model_is_finite():
    dead = tofu.truth_ratio(np.array([5000.0]), np.array([[4000.0, 9000.0]]))
    assert dead.tolist() == [0]


def test_probability_among_options():
    found = tofu.normalized_probability(
        np.array([0.2, 0.0]), np.array([[0.1, 0.1], [0.0, 0.0]])
    )
    np.testing.assert_allclose(found, [0.5, 0], rtol=1e-9)


def test_model_utility_is_a_harmonic_mean():
    rng = np.random.default_rng(1)
    parts = dict(zip(tofu.UTILITY_PARTS, rng.uniform(0.1, 1, 9), strict=True))
    found = tofu.model_utility(parts)
    # By products: n prod(x) / sum of the products that leave one out.
    values = list(parts.values())
    rest = [math.prod(values[:i] + values[i + 1 :]) for i in range(9)]
    assert found == pytest.approx(9 * math.prod(values) / sum(rest), rel=1e-12)
    for name in tofu.UTILITY_PARTS:
        assert tofu.model_utility(parts | {name: 0.0}) == 0
    same = dict.fromkeys(tofu.UTILITY_PARTS, 0.3)
    assert tofu.model_utility(same) == pytest.approx(0.3)


def utility_sets(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: tofu.UtilityItems(
            rng.uniform(0.2, 1, n), rng.uniform(0.2, 1, n), rng.uniform(0, 1.5, n)
        )
        for name in tofu.UTILITY_SETS
    }


def test_parts_come_from_items():
    sets = utility_sets()
    parts = tofu.utility_parts(sets)
    assert tuple(parts) == tofu.UTILITY_PARTS
    items = sets["world_facts"]
    assert parts["world_facts/probability"] == items.probability.mean()
    kept = [max(0, 1 - r) for r in items.truth_ratio]
    assert parts["world_facts/truth_ratio"] == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize(("n", "shift"), [(5, 0), (32, 0.4), (32, 1), (80, 0.3)])
def test_p_equals_the_closed_forms(n, shift):
    a, b = samples(n, shift=shift, seed=n)
    found = tofu.forget_quality(a, b)
    h = distance_oracle(a, b) * n
    assert found.distance == pytest.approx(h / n)
    assert found.value == pytest.approx(float(ks_exact(n, int(h))), rel=1e-11)
    assert found.value == pytest.approx(ks_log_gamma(n, int(h)), rel=1e-10)
    assert found.log10 == pytest.approx(math.log10(found.value))
    assert found.note == ""


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 3), (3, 7)])
def test_p_counts_orders(n, m):
    a, b = samples(n, m, shift=1, seed=n)
    expected = ks_by_orders(n, m, distance_oracle(a, b))
    assert tofu.forget_quality(a, b).value == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("n", "p"),
    [
        (20, 1.5e-11),
        (32, 1.0913e-18),
        (40, 1.9e-23),
        (200, 1.94e-119),
        (400, 1.06e-239),
    ],
)
def test_disjoint_samples_stand_on_the_floor(n, p):
    low, high = np.linspace(0.1, 0.2, n), np.linspace(0.3, 0.4, n)
    found = tofu.forget_quality(low, high)
    assert found.value == pytest.approx(p, rel=1e-2 if n != 32 else 1e-4)
    assert found.log10 == pytest.approx(found.log10_floor)
    assert found.distance == 1
    assert "floor" in found.note


@pytest.mark.parametrize("overlap", [0, 1, 40])
def test_log_p_below_the_smallest_float(overlap):
    n = 700
    low = np.arange(1, n + 1.0)
    found = tofu.forget_quality(low, low + n - overlap)
    p = ks_exact(n, n - overlap)
    expected = math.log10(p.numerator) - math.log10(p.denominator)
    assert found.value == 0
    assert expected < -320
    assert found.log10 == pytest.approx(expected, rel=1e-12)
    assert (found.distance == 1) == bool(found.note) == (overlap == 0)


@pytest.mark.parametrize("overlap", [0, 1, 15])
def test_log_p_of_unequal_samples_below_the_smallest_float(overlap):
    low, high = np.arange(600.0), np.arange(600.0, 1250.0) - overlap - 0.5
    p = ks_by_paths(600, 650, distance_oracle(low, high))
    expected = math.log10(p.numerator) - math.log10(p.denominator)
    assert expected < -308
    found = tofu.forget_quality(low, high)
    assert found.log10 == pytest.approx(expected, rel=1e-12)


def test_a_model_compared_with_itself():
    a, _ = samples(32)
    found = tofu.forget_quality(a, a[::-1].copy())
    assert (found.value, found.log10, found.distance) == (1, 0, 0)


@pytest.mark.parametrize(("n", "m"), [(32, 32), (20, 33)])
def test_the_direction_of_the_ratio_does_not_matter(n, m):
    a, b = samples(n, m, shift=0.7)
    found, turned = tofu.forget_quality(a, b), tofu.forget_quality(1 / a, 1 / b)
    assert turned.value == pytest.approx(found.value, rel=1e-12)
    assert turned.distance == pytest.approx(found.distance)


def test_power_at_eighty_items():
    """Equal models pass; a shift of one deviation is found in nearly every draw."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(400, 2, 80))
    equal = [tofu.forget_quality(*np.exp(d)).value for d in draws]
    # A discrete test: P(p <= t) <= t, and little below it.
    assert np.mean(np.array(equal) <= 0.05) < 0.075
    assert 0.45 < np.median(equal) < 0.7
    assert 0.03 < np.quantile(equal, 0.05) < 0.1
    moved = draws[:100] + np.array([0.0, 1.0])[:, None]
    different = [tofu.forget_quality(*np.exp(d)).value for d in moved]
    assert np.mean(np.array(different) < 0.01) > 0.95


def test_interval_of_model_utility():
    sets = utility_sets()

    def utility(*groups):
        named = dict(zip(tofu.UTILITY_SETS, groups, strict=True))
        return tofu.model_utility(tofu.utility_parts(named))

    found = intervals.bootstrap_interval(utility, *sets.values(), n_boot=100)
    assert found.low < found.value < found.high
    assert found.value == tofu.model_utility(tofu.utility_parts(sets))


def test_bad_input_is_told():
    ok = np.ones(3)
    with pytest.raises(InputError, match="correct_nll 3, wrong_nll 2"):
        tofu.truth_ratio(ok, np.ones((2, 5)))
    with pytest.raises(InputError, match="at least one item"):
        tofu.forget_quality(np.ones(0), ok)
    with pytest.raises(InputError, match=r"NaN for 1 of 3 items, first \[1\]"):
        tofu.forget_quality(ok, np.array([1, np.nan, 1]))
    with pytest.raises(InputError, match=r"expected values in \[0, 1\]"):
        tofu.normalized_probability(2 * ok, np.ones((3, 2)))
    with pytest.raises(InputError, match=r"missing \['retain/probability'"):
        tofu.model_utility({"accuracy": 1.0})
    broken = dict.fromkeys(tofu.UTILITY_PARTS, 0.5) | {"retain/probability": math.nan}
    with pytest.raises(InputError, match="retain/probability is nan"):
        tofu.model_utility(broken)
    with pytest.raises(InputError, match="unknown"):
        tofu.utility_parts({"forget": tofu.UtilityItems(ok, ok, ok)})


@pytest.mark.parametrize("count", [5, 7, 14, 30])
def test_the_smallest_distance_has_p_1(count):
    """SciPy counts a little above 1 there, warns and takes its limit."""
    one = np.arange(count, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tofu.forget_quality(one, one + 0.5)
    assert found.distance == pytest.approx(1 / count)
    assert found.value == pytest.approx(1, abs=1e-12)
