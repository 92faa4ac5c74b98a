"""Scores of features: loops in float64, invariances, the clamp, scikit-learn."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma
from sklearn.linear_model import RidgeClassifier

from lt_mia_jax.transfer.selection import tmi as module
from lt_mia_jax.transfer.selection.tmi import (
    h_score,
    knn_entropy,
    probe_accuracy,
    tmi,
)


def entropy(x, k=3, min_dist=1.0):
    """The estimator row by row, and which distances were clamped."""
    n, width = x.shape
    x = np.asarray(x, float)
    if n < 2:
        return 0.0, []
    k, total, clamped = min(k, n - 1), 0.0, []
    for i in range(n):
        distances = sorted(max(abs(x[i] - x[j])) for j in range(n) if j != i)
        total += np.log(2 * max(distances[k - 1], min_dist))
        clamped.append(distances[k - 1] < min_dist)
    return -digamma(k) + digamma(n) + width / n * total, clamped


def labeled(seed=0, rows=60, width=4, classes=5, scale=1.5):
    """Classes of unequal sizes: class 3 has one row, class 4 none."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, size=rows, p=[0.6, 0.35, 0.05])
    y[0], y[1:3] = 3, 2
    x = scale * rng.normal(size=(rows, width))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y), classes


@pytest.mark.parametrize("min_dist", [1e-6, 1.0])
def test_the_score_equals_the_loop(min_dist):
    x, y, classes = labeled()
    parts = [entropy(x[y == c], 3, min_dist) for c in range(classes)]
    sizes = np.bincount(y, minlength=classes)
    expected = sum(n * h for n, (h, _) in zip(sizes, parts, strict=True)) / len(x)
    score, clamped = tmi(x, y, classes, min_dist=min_dist)
    assert float(score) == pytest.approx(expected, rel=1e-5)
    flat = [c for _, group in parts for c in group]
    assert float(clamped) == pytest.approx(np.mean(flat))
    whole = float(knn_entropy(x, min_dist=min_dist))
    assert whole == pytest.approx(entropy(x, 3, min_dist)[0], rel=1e-5)


def test_shifts_change_nothing_and_a_scale_adds_its_logarithm():
    x, _, _ = labeled(rows=60)
    plain = float(knn_entropy(x, min_dist=1e-6))
    assert float(knn_entropy(x + 3, min_dist=1e-6)) == pytest.approx(plain, rel=1e-4)
    scaled = float(knn_entropy(5 * x, min_dist=1e-6))
    assert scaled == pytest.approx(plain + 4 * np.log(5), rel=1e-5)


def test_below_the_smallest_distance_the_score_no_longer_sees_the_scale():
    x, y, classes = labeled(scale=0.05)
    (small, all_clamped), (smaller, _) = tmi(x, y, classes), tmi(x / 3, y, classes)
    assert float(small) == float(smaller)
    assert float(all_clamped) == 1.0
    wide, clamped = tmi(100 * x, y, classes)
    assert float(wide) > float(small)
    assert 0 <= float(clamped) < 0.5


def test_chunks_do_not_change_the_score(monkeypatch):
    x, y, classes = labeled()
    plain = tmi(x, y, classes)
    monkeypatch.setattr(module, "CHUNK", 7)
    module._entropies.clear_cache()
    np.testing.assert_allclose(tmi(x, y, classes), plain, rtol=1e-6)
    module._entropies.clear_cache()


def test_the_h_score_equals_its_formula_and_grows_with_separation():
    x, y, classes = labeled()
    x64, y64 = np.asarray(x, float), np.asarray(y)
    means = np.array([x64[y64 == c].mean(axis=0) for c in y64])
    expected = np.trace(
        np.linalg.inv(np.cov(x64.T, bias=True)) @ np.cov(means.T, bias=True)
    )
    assert float(h_score(x, y, classes)) == pytest.approx(expected, rel=1e-3)
    apart = x + 10 * jnp.eye(classes, x.shape[1])[y]
    assert float(h_score(apart, y, classes)) > expected + 1


def test_the_probe_agrees_with_scikit_learn():
    x, y, classes = labeled(rows=90)
    x = x + jnp.eye(classes, x.shape[1])[y]
    half = slice(0, 60), slice(60, 90)
    (a, b), (ya, yb) = ([z[rows] for rows in half] for z in (x, y))
    scaled = [(z - a.mean(axis=0)[None]) / a.std(axis=0)[None] for z in (a, b)]
    fitting, testing, classes_of = map(np.asarray, (*scaled, ya))
    other = RidgeClassifier(alpha=1e-3 * 60).fit(fitting, classes_of).predict(testing)
    assert float(probe_accuracy(a, ya, b, yb, classes)) == pytest.approx(
        float(np.mean(other == yb)), abs=1 / 30
    )


def test_examples_run():
    assert doctest.testmod(module).failed == 0
