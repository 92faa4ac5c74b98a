import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_mia_jax.attacks.learned import losses

LOGITS = np.array([-3.0, -0.5, 0.0, 0.2, 4.0, 1.5], np.float32)
LABELS = np.array([0, 1, 1, 0, 1, 0], np.float32)


def _probability(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.5])
def test_cross_entropy_from_its_definition(smoothing):
    expected = []
    for z, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        q = y * (1 - smoothing) + smoothing / 2
        p = _probability(z)
        expected.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
    found = losses.binary_cross_entropy(
        jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing=smoothing
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_from_its_definition():
    expected = []
    for z, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        true = _probability(z) if y else 1 - _probability(z)
        alpha = 0.25 * y + 0.75 * (1 - y)
        expected.append(-alpha * (1 - true) ** 2 * math.log(true))
    found = losses.focal(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_focal_without_focus_is_weighted_cross_entropy():
    plain = losses.binary_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    found = losses.focal(jnp.asarray(LOGITS), jnp.asarray(LABELS), gamma=0.0, alpha=0.5)
    np.testing.assert_allclose(found, plain / 2, rtol=1e-6)


def test_extreme_logits_stay_finite():
    z = jnp.array([-1e4, 1e4, -1e4, 1e4])
    y = jnp.array([0.0, 0.0, 1.0, 1.0])
    for loss in (losses.binary_cross_entropy, losses.focal):
        gradient = jax.grad(lambda z, loss=loss: loss(z, y).sum())(z)
        assert np.isfinite(loss(z, y)).all()
        assert np.isfinite(gradient).all()


def _pairs(s, y, included, margin):
    """Mean and gradient over all pairs, one by one, in float64."""
    members = [i for i in range(len(s)) if included[i] and y[i] == 1]
    nonmembers = [j for j in range(len(s)) if included[j] and y[j] == 0]
    total, gradient = 0.0, np.zeros(len(s))
    for i in members:
        for j in nonmembers:
            gap = margin - (float(s[i]) - float(s[j]))
            if gap > 0:
                total += gap
                gradient[i] -= 1
                gradient[j] += 1
    count = max(1, len(members) * len(nonmembers))
    return total / count, gradient / count


@pytest.mark.parametrize("seed", range(3))
def test_pairwise_hinge_equals_the_sum_over_pairs(seed):
    rng = np.random.default_rng(seed)
    s = rng.normal(size=61).astype(np.float32) * 2
    s[:10] = np.round(s[:10])  # ties between scores
    y = (rng.random(61) < 0.4).astype(np.float32)
    included = rng.random(61) < 0.9
    dirty = np.where(included, s, np.nan)
    value, gradient = jax.value_and_grad(losses.pairwise_hinge)(
        jnp.asarray(dirty), jnp.asarray(y), jnp.asarray(included), margin=0.7
    )
    expected = _pairs(s, y, included, 0.7)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


def test_pairwise_hinge_of_one_class_is_zero():
    found = losses.pairwise_hinge(jnp.ones(4), jnp.ones(4), jnp.ones(4, bool))
    assert float(found) == 0
