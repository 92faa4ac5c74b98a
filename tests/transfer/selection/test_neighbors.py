"""Errors of nearest neighbors against scikit-learn; choice of a source."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from lt_mia_jax.transfer.selection import neighbors
from lt_mia_jax.transfer.selection.neighbors import choose_source, knn_error


def embedded(seed, rows, spread=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=rows)
    x = np.eye(3, 6)[y] + spread * rng.normal(size=(rows, 6))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y)


@pytest.mark.parametrize("k", [1, 5])
def test_the_error_equals_that_of_scikit_learn(k):
    (x, y), (test_x, test_y) = embedded(0, 50), embedded(1, 40)
    other = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, y)
    found = knn_error(x, y, test_x, test_y, n_classes=3, k=k)
    assert float(found) == pytest.approx(1 - other.score(test_x, test_y), abs=1e-6)


def test_the_source_whose_embeddings_separate_best_is_chosen():
    def error(spread):
        x, y = embedded(0, 60, spread)
        test_x, test_y = embedded(1, 60, spread)
        return float(knn_error(x, y, test_x, test_y, n_classes=3))

    assert choose_source([error(2.0), error(0.1), error(1.0)]) == 1


def test_a_row_of_zeros_is_no_neighbor_of_anything():
    x = jnp.array([[0.0, 0.0], [0.1, 1.0], [1.0, 0.1]])
    found = knn_error(x, jnp.arange(3), x[1:], jnp.array([1, 2]), n_classes=3, k=1)
    assert float(found) == 0


def test_ties_go_to_the_earliest_and_nothing_to_none():
    assert choose_source([0.4, 0.2, 0.2]) == 1
    assert choose_source([]) is None


def test_examples_run():
    assert doctest.testmod(neighbors).failed == 0
