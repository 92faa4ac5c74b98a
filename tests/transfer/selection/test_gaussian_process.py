"""The process against scikit-learn's."""

import doctest

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from lt_mia_jax.transfer.selection import gaussian_process


def data(columns=2):
    rng = np.random.default_rng(4)
    x = rng.random((7, columns))
    return x, np.sin(4 * x[:, 0]) + 3, rng.random((20, columns))


def other(x, y, length, noise):
    process = GaussianProcessRegressor(
        RBF(length), alpha=noise, normalize_y=True, optimizer=None
    )
    return process.fit(x, y)


@pytest.mark.parametrize("noise", [1e-6, 0.1])
def test_posterior_and_evidence_equal_scikit_learn(noise):
    x, y, points = data()
    ours = gaussian_process.fit(x, y, lengths=[0.3], noise=noise)
    theirs = other(x, y, 0.3, noise)
    for a, b in zip(
        ours.predict(points), theirs.predict(points, return_std=True), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert ours.evidence == pytest.approx(theirs.log_marginal_likelihood_value_)


def test_the_length_of_largest_evidence_is_taken():
    x, y, _ = data(columns=1)
    found = gaussian_process.fit(x, y)
    evidence = {
        length: other(x, y, length, 0.1).log_marginal_likelihood_value_
        for length in gaussian_process.LENGTHS
    }
    assert found.length == max(evidence, key=evidence.__getitem__)


def test_where_lengths_are_equally_likely_the_longest_is_taken():
    """One score says nothing about them; a short one would make all points alike."""
    found = gaussian_process.fit(np.array([[0.5]]), np.array([3.0]))
    assert found.length == max(gaussian_process.LENGTHS)
    _, deviation = found.predict(np.array([[0.6], [1.0]]))
    assert deviation[0] < deviation[1]


def test_equal_scores_are_no_problem():
    mean, deviation = gaussian_process.fit(np.eye(2), np.ones(2)).predict(np.eye(2))
    np.testing.assert_allclose(mean, 1)
    assert (deviation > 0).all()


def test_examples_run():
    assert doctest.testmod(gaussian_process).failed == 0
