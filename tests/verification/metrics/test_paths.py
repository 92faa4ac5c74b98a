"""Linear models whose order of learning stays visible."""

import numpy as np
import pytest

from lt_mia_jax.verification.metrics.paths import (
    ascent_bound,
    ascent_difference,
    retrain_distance,
)


def ridge(inputs, targets, start, weight):
    """The minimum of |X t - y|^2 + weight |t - start|^2."""
    gram = inputs.T @ inputs + weight * np.eye(inputs.shape[1])
    return np.linalg.solve(gram, inputs.T @ targets + weight * start)


@pytest.mark.parametrize("width", [6, 12])
def test_ascent_drives_two_orders_of_learning_apart(width):
    rng = np.random.default_rng(width)
    a, b = (rng.normal(size=(5, width)) for _ in range(2))
    y_a, y_b = (rng.normal(size=5) for _ in range(2))
    judged = rng.normal(size=(9, width))
    zero, step, weight = np.zeros(width), 0.03, 0.5
    first = ridge(b, y_b, ridge(a, y_a, zero, weight), weight)
    second = ridge(a, y_a, ridge(b, y_b, zero, weight), weight)
    bound = ascent_bound(first - second, b, judged, step)
    assert bound.growth > 1
    one, other, held = first, second, 0
    for steps in range(1, 120):
        one = one + step * 2 / 5 * b.T @ (b @ one - y_b)
        other = other + step * 2 / 5 * b.T @ (b @ other - y_b)
        closed = ascent_difference(first - second, b, step, steps)
        np.testing.assert_allclose(
            closed, one - other, rtol=1e-9, atol=1e-12 * np.abs(one).max()
        )
        distance = retrain_distance(
            judged @ one[:, None], judged @ other[:, None]
        ).mean()
        if steps >= bound.start:
            held += 1
            assert distance >= bound.at(steps) * (1 - 1e-9)
    assert held > 20
