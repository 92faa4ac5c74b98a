"""The grid of styles and topics: shares by counting, distance against SciPy."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from quick_compile import jit

from lt_mia_jax.transfer.streams import grid
from lt_mia_jax.transfer.streams.grid import frechet_distance, grid_scores


def counted(styles, topics, axis, target):
    """Every text looked at by itself."""
    hits = {"target": [], "same": [], "other": []}
    for (s, o, r), style in np.ndenumerate(styles):
        topic = topics[s, o, r]
        own, label = (style, s) if axis == "style" else (topic, o)
        cross, cross_label = (topic, o) if axis == "style" else (style, s)
        hits["target" if label == target else "same"].append(own == label)
        hits["other"].append(cross == cross_label)
    return 1 - np.mean(hits["target"]), np.mean(hits["same"]), np.mean(hits["other"])


@pytest.mark.parametrize("axis", ["style", "topic"])
def test_scores_equal_counting(axis):
    rng = np.random.default_rng(3)
    styles, topics = rng.integers(4, size=(4, 3, 50)), rng.integers(3, size=(4, 3, 50))
    found = grid_scores(styles, topics, axis=axis, target=2)
    np.testing.assert_allclose(found, counted(styles, topics, axis, 2), rtol=1e-12)
    on_device = jit(lambda a, b: grid_scores(a, b, axis=axis, target=2))(styles, topics)
    np.testing.assert_allclose(on_device, found, rtol=1e-5)


def test_a_perfect_model_has_no_unlearning_and_full_retention():
    styles, topics = np.indices((4, 3, 2))[:2]
    assert grid_scores(styles, topics, axis="topic", target=0) == (0, 1, 1)


def test_wrong_targets_and_shapes_are_refused():
    table = np.zeros((4, 3, 2), int)
    with pytest.raises(ValueError, match="target 3 of 3"):
        grid_scores(table, table, axis="topic", target=3)
    with pytest.raises(ValueError, match="shapes"):
        grid_scores(table, table[:2], axis="topic", target=0)


def features(seed, rows, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 5)) @ rng.normal(size=(5, 5)) + shift


def test_the_frechet_distance_equals_the_formula_with_a_matrix_root():
    a, b = features(0, 60), features(1, 40, shift=2.0)
    first, second = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    on_device = jit(frechet_distance)(jnp.asarray(a), jnp.asarray(b))
    assert float(on_device) == pytest.approx(expected, rel=1e-4)


def test_equal_features_have_no_distance_and_shifts_count_squared():
    a = features(2, 30)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3.0) == pytest.approx(5 * 9, rel=1e-9)


def test_fewer_rows_than_columns_are_no_problem():
    a, b = features(0, 3), features(1, 3)
    assert frechet_distance(a, b) > 0
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(a[:1], b)


def test_examples_run():
    assert doctest.testmod(grid).failed == 0
