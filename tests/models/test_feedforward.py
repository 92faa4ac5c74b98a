import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest

from lt_mia_jax.models import ExecutionConfig, gpt2_like
from lt_mia_jax.models.config import Mlp
from lt_mia_jax.models.execution import CallConfig
from lt_mia_jax.models.feedforward import MlpLayer, activate


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activation_matches_formula(name):
    x = np.linspace(-6, 6, 41).astype(np.float32)
    found = activate(jnp.asarray(x), name)
    np.testing.assert_allclose(found, oracle.activate(x, name), atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_matches_definition(gated, bias, key):
    config = Mlp(width=12, activation="silu", gated=gated, bias=bias)
    context = CallConfig(model=gpt2_like(9, 8, 1, 2, 4), execution=ExecutionConfig())
    layer = MlpLayer(config, context)
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    params = layer.init(key, jnp.asarray(x))["params"]
    names = {"up", "down"} | ({"gate"} if gated else set())
    assert set(params) == names
    assert all(("bias" in params[name]) == bias for name in names)
    found = layer.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, oracle.mlp(x, config, params), atol=1e-5)
