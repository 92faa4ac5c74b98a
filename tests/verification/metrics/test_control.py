"""Risk control by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.control import (
    accepted,
    calibrated_risk,
    risk_p_value,
)


@pytest.mark.parametrize(("count", "level"), [(20, 0.1), (60, 0.3)])
def test_p_values_are_at_most_uniform_where_the_risk_is_the_level(count, level):
    rng = np.random.default_rng(0)
    draws = 4000
    kinds = {
        "yes or no": (rng.random((draws, count)) < level).astype(float),
        "graded": rng.beta(level, 1 - level, (draws, count)),
    }
    for name, losses in kinds.items():
        found = np.array([risk_p_value(row, level) for row in losses])
        for error in (0.01, 0.05, 0.1, 0.3):
            noise = 3 * math.sqrt(error * (1 - error) / draws)
            assert (found <= error).mean() <= error + noise, (name, error)
    # A risk well below the level is noticed.
    assert risk_p_value(np.zeros(count), level) < (0.3 if count == 20 else 1e-6)


def test_p_value_by_hand():
    losses = np.array([1.0] + [0.0] * 9)
    h = 0.1 * math.log(0.1 / 0.4) + 0.9 * math.log(0.9 / 0.6)
    tail = sum(math.comb(10, k) * 0.4**k * 0.6 ** (10 - k) for k in (0, 1))
    wanted = min(math.exp(-10 * h), math.e * tail)
    assert risk_p_value(losses, 0.4) == pytest.approx(wanted, rel=1e-12)
    assert risk_p_value(np.ones(10), 0.4) == 1.0
    # Seven tenths thrice are 2.1, and count as three.
    assert risk_p_value(np.array([0.7] * 3), 0.99) == pytest.approx(
        min(math.exp(-3 * (0.7 * math.log(0.7 / 0.99) + 0.3 * math.log(30))), 1.0)
    )
    assert calibrated_risk(losses) == pytest.approx(2 / 11)
    for bad in (np.array([]), np.array([1.2]), np.array([np.nan])):
        with pytest.raises(InputError):
            risk_p_value(bad, 0.1)
    with pytest.raises(InputError, match="level"):
        risk_p_value(losses, 1.0)


def test_acceptance_holds_for_all_at_once():
    p = np.array([0.001, 0.02, 0.2, 0.003])
    assert accepted(p, 0.95).tolist() == [True, False, False, True]
    assert accepted(p, 0.95, rule="sequence").tolist() == [True, True, False, False]
    # Six settings exactly at the level: one is accepted in at most 5 % of the draws.
    rng = np.random.default_rng(1)
    level, count, draws = 0.2, 50, 2000
    tables = binom.rvs(count, level, size=(draws, 6), random_state=rng)
    by_total = [
        risk_p_value((np.arange(count) < total) * 1.0, level)
        for total in range(count + 1)
    ]
    for rule in ("bonferroni", "sequence"):
        wrong = np.mean(
            [accepted(np.take(by_total, row), 0.95, rule=rule).any() for row in tables]
        )
        assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
