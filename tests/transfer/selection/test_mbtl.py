"""Choice of contexts: the acquisition as loops, indices against values, baselines."""

import doctest
import itertools

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from lt_mia_jax.transfer.selection import mbtl as module
from lt_mia_jax.transfer.selection.gaussian_process import LENGTHS
from lt_mia_jax.transfer.selection.mbtl import (
    coverage,
    equidistant,
    fit_slope,
    greedy_oracle,
    mbtl,
    mbtl_next,
)


def transfer_matrix(seed, n=30, slope=0.02):
    """Smooth training scores less a gap that grows with distance."""
    rng = np.random.default_rng(seed)
    own = np.convolve(rng.normal(size=n + 12), np.hanning(12), "valid")[:n] / 6
    far = abs(np.arange(n)[:, None] - np.arange(n))
    return own[:, None] - slope * far + 0.01 * rng.normal(size=(n, n))


def acquisition(contexts, picked, scores, slope):
    """From the formula, with scikit-learn's process."""
    unit = [[(c - min(contexts)) / (max(contexts) - min(contexts))] for c in contexts]
    own = [scores[r][i] for r, i in enumerate(picked)]
    fitted = [
        GaussianProcessRegressor(
            RBF(length), alpha=0.1, normalize_y=True, optimizer=None
        ).fit([unit[i] for i in picked], own)
        for length in LENGTHS
    ]
    process = max(fitted, key=lambda p: p.log_marginal_likelihood_value_)
    mean, sigma = process.predict(unit, return_std=True)
    beta, values = np.sqrt(np.log(len(picked) + 1)), []
    for i, a in enumerate(contexts):
        gains = [
            mean[i] + beta * sigma[i] - slope * abs(a - b) - max(s[j] for s in scores)
            for j, b in enumerate(contexts)
        ]
        values.append(np.mean([max(g, 0) for g in gains]))
    return [-np.inf if i in picked else v for i, v in enumerate(values)]


@pytest.mark.parametrize("seed", range(3))
def test_the_next_pick_maximizes_the_acquisition(seed):
    transfer = transfer_matrix(seed)
    contexts = np.sort(np.random.default_rng(seed).random(30)) * 30
    for picked in ([15], [15, 4], [15, 4, 27, 9]):
        values = acquisition(contexts, picked, transfer[picked], 0.02)
        assert mbtl_next(contexts, picked, transfer[picked], 0.02) == np.argmax(values)


def test_the_first_pick_is_the_middle_context():
    assert mbtl_next(np.array([0.9, 0.1, 0.5]), [], np.zeros((0, 3)), 1.0) == 2


def test_picks_are_indices_whatever_the_values_of_contexts():
    """Comparing values with indices would pick contexts below 1 again and again."""
    transfer = transfer_matrix(0)
    plain = mbtl(np.arange(30.0), transfer, 8, slope=0.02)
    small = mbtl(np.arange(30.0) / 100 + 0.1, transfer, 8, slope=2.0)
    assert plain == small
    assert len(set(small)) == 8


def test_the_process_sees_training_scores_and_not_the_running_best(monkeypatch):
    transfer, seen, fit = transfer_matrix(0), [], module.gaussian_process.fit

    def watched(x, y):
        seen.append(y)
        return fit(x, y)

    monkeypatch.setattr(module.gaussian_process, "fit", watched)
    picks = mbtl(np.arange(30.0), transfer, 6)
    best = np.maximum.accumulate(transfer[picks], axis=0)
    for k, scores in enumerate(seen, start=1):
        np.testing.assert_array_equal(scores, [transfer[i, i] for i in picks[:k]])
    assert (best[range(5), picks[:5]] > seen[-1]).any()


def test_the_slope_is_the_drop_by_distance():
    contexts = np.array([0.0, 1.0, 3.0, 7.0])
    picked = [1, 3]
    exact = 5 - 0.3 * abs(contexts[picked][:, None] - contexts)
    assert fit_slope(contexts, picked, exact) == pytest.approx(0.3)
    assert fit_slope(contexts, picked, -exact) == 0.0


def test_it_beats_random_choice_on_smooth_scores_and_stays_near_the_oracle():
    ahead, near = [], []
    for seed in range(10):
        transfer = transfer_matrix(seed)
        rng = np.random.default_rng(seed)
        found = coverage(transfer, mbtl(np.arange(30.0), transfer, 6))
        rest = [coverage(transfer, rng.permutation(30)[:6].tolist()) for _ in range(20)]
        ahead.append(found > np.mean(rest))
        near.append(coverage(transfer, greedy_oracle(transfer, 6)) - found)
    assert sum(ahead) >= 8
    assert np.median(near) < 0.05


def test_the_greedy_oracle_takes_the_best_single_pick_first_and_is_near_the_best_pair():
    transfer = transfer_matrix(1, n=12)
    first, second = greedy_oracle(transfer, 2)
    assert first == np.argmax(transfer.mean(axis=1))
    pairs = itertools.combinations(range(12), 2)
    best = max(coverage(transfer, pair) for pair in pairs)
    gain = coverage(transfer, [first, second]) - coverage(transfer, [first])
    assert gain >= (best - coverage(transfer, [first])) * (1 - 1 / np.e)


@pytest.mark.parametrize(("n", "budget"), [(9, 3), (10, 3), (7, 7), (30, 1)])
def test_equidistant_picks_lie_in_the_middle_of_equal_parts(n, budget):
    picks = equidistant(n, budget)
    ends = np.arange(1, budget + 1) * n / budget
    assert [np.searchsorted(ends, p + 0.5) for p in picks] == list(range(budget))
    middles = ends - n / (2 * budget)
    assert (abs(np.array(picks) + 0.5 - middles) <= 0.5).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="1 of 3 contexts"):
        mbtl_next(np.arange(3.0), [1], np.zeros((2, 3)), 0.1)
    with pytest.raises(ValueError, match="2 of 2 contexts"):
        mbtl_next(np.arange(2.0), [1, 0], np.zeros((2, 2)), 0.1)


def test_examples_run():
    assert doctest.testmod(module).failed == 0
