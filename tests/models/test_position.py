import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest

from lt_mia_jax.models.config import LinearScaling, Llama3Scaling, Rotary
from lt_mia_jax.models.position import rotary_frequencies, rotate

ROTARIES = [
    Rotary(),
    Rotary(theta=500000.0),
    Rotary(scaling=LinearScaling(factor=4.0)),
    Rotary(
        theta=1000.0,
        scaling=Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64
        ),
    ),
]


@pytest.mark.parametrize("config", ROTARIES)
def test_frequencies_match_definition(config):
    found = rotary_frequencies(config, 16)
    np.testing.assert_allclose(found, oracle.frequencies(config, 16), rtol=1e-5)


@pytest.mark.parametrize("half", [2, 3, 4])
def test_rotation_is_complex_multiplication(half):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    freqs = oracle.frequencies(Rotary(), 2 * half)
    positions = np.array([0, 1, 2, 7, 30])
    expected = np.empty(x.shape)
    for b, t, h in np.ndindex(x.shape[:3]):
        expected[b, t, h] = oracle.rotate(x[b, t, h], positions[t], freqs)
    found = rotate(
        jnp.asarray(x), jnp.asarray(positions), jnp.asarray(freqs, jnp.float32)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    freqs = rotary_frequencies(Rotary(), 8)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), "float32") for _ in "qk")

    def score(m, n):
        a, b = (rotate(x, jnp.array([p]), freqs) for x, p in ((query, m), (key, n)))
        return float((a * b).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-2)
