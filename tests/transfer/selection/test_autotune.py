"""Greedy depth: the best evaluation counts, the search stops, nothing runs twice."""

import doctest

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from lt_mia_jax.transfer.selection import autotune as module
from lt_mia_jax.transfer.selection.autotune import autotune, next_candidate
from lt_mia_jax.transfer.selection.gaussian_process import LENGTHS

GRID = np.linspace(0, 1, 7)[:, None]


def test_a_depth_is_judged_by_its_best_evaluation_and_not_by_the_last():
    """The last evaluation of depth 2 is bad: by it the search would stop at depth 1."""
    calls = []

    def evaluate(settings):
        calls.append(settings)
        tries = sum(len(s) == len(settings) for s in calls)
        return {1: [0.5, 0.6, 0.6], 2: [0.9, 0.2, 0.1], 3: [0.0] * 3}[len(settings)][
            tries - 1
        ]

    found = autotune(evaluate, GRID, depth=4, evaluations=3)
    assert found.best.score == 0.9
    assert found.best.settings == calls[3]
    assert [len(s) for s in calls] == [1] * 3 + [2] * 3 + [3] * 3
    assert [one.settings for one in found.history] == calls


def test_settings_of_earlier_layers_are_the_best_ones_and_stay():
    def evaluate(settings):
        return len(settings) - (settings[-1][0] - 2 / 3) ** 2

    found = autotune(evaluate, GRID, depth=3, evaluations=7)
    for one in found.history:
        assert all(s == (GRID[4, 0],) for s in one.settings[:-1])
    assert found.best.settings == ((GRID[4, 0],),) * 3
    assert len(set(one.settings for one in found.history)) == len(found.history) == 21


def test_nothing_better_than_the_start_keeps_the_start():
    found = autotune(lambda settings: 0.3, GRID, depth=3, evaluations=2, start=0.3)
    assert found.best == ((), 0.3)
    assert len(found.history) == 2


def test_the_next_candidate_maximizes_expected_improvement():
    rng = np.random.default_rng(2)
    x = rng.random((12, 2))
    tried, scores = [3, 8, 1], [0.2, 0.7, 0.4]
    fitted = [
        GaussianProcessRegressor(
            RBF(length), alpha=0.1, normalize_y=True, optimizer=None
        ).fit(x[tried], scores)
        for length in LENGTHS
    ]
    process = max(fitted, key=lambda p: p.log_marginal_likelihood_value_)
    mean, sigma = process.predict(x, return_std=True)
    # E[max(f - best, 0)] by quadrature.
    nodes = np.linspace(-8, 8, 4001)
    gain = [
        np.trapezoid(np.maximum(m + s * nodes - 0.7, 0) * norm.pdf(nodes), nodes)
        for m, s in zip(mean, sigma, strict=True)
    ]
    expected = max(set(range(12)) - set(tried), key=lambda i: gain[i])
    assert next_candidate(x, tried, scores) == expected


def test_the_search_finds_a_smooth_peak_in_fewer_runs_than_the_grid():
    grid, hits = np.linspace(0, 1, 21)[:, None], 0
    for peak in np.linspace(0.1, 0.9, 9):
        found = autotune(
            lambda s, peak=peak: -((s[0][0] - peak) ** 2), grid, depth=1, evaluations=8
        )
        hits += found.best.score > -(0.06**2)
    assert hits >= 8


def test_an_empty_search_is_refused():
    with pytest.raises(ValueError, match="no depth"):
        autotune(lambda settings: 0.0, GRID, depth=0)


def test_examples_run():
    assert doctest.testmod(module).failed == 0
