import jax.numpy as jnp
import numpy as np
import oracle_models as oracle

from lt_mia_jax.models.config import LayerNorm, RmsNorm
from lt_mia_jax.models.norm import layer_norm, rms_norm


def make(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    x, scale, bias = rng.normal(size=(2, 5, 8)), rng.normal(size=8), rng.normal(size=8)
    arrays = [array.astype(np.float32) for array in (x + offset, scale, bias)]
    return arrays


def test_layer_norm_matches_definition():
    x, scale, bias = make(offset=3.0)
    expected = oracle.normalize(x, LayerNorm(eps=1e-3), {"scale": scale, "bias": bias})
    found = layer_norm(*map(jnp.asarray, (x, scale, bias)), eps=1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rms_norm_matches_definition():
    x, scale, _ = make(offset=-1.0)
    expected = oracle.normalize(x, RmsNorm(eps=1e-3), {"scale": scale})
    found = rms_norm(jnp.asarray(x), jnp.asarray(scale), eps=1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layer_norm_keeps_precision_far_from_zero():
    """E[x^2] - E[x]^2 would lose every digit here."""
    x, scale, bias = make(offset=2000.0)
    expected = oracle.normalize(x, LayerNorm(eps=1e-5), {"scale": scale, "bias": bias})
    found = layer_norm(*map(jnp.asarray, (x, scale, bias)), eps=1e-5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_bfloat16_input_has_float32_statistics():
    x, scale, _ = make()
    low = jnp.asarray(x, jnp.bfloat16)
    expected = oracle.normalize(
        np.asarray(low, np.float64), RmsNorm(eps=1e-6), {"scale": scale}
    )
    found = rms_norm(low, jnp.asarray(scale), eps=1e-6)
    assert found.dtype == jnp.bfloat16
    # One rounding of the result to bfloat16, relative 2^-9.
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8)
