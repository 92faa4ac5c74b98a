"""4-bit matrices against a loop over groups, and adapters on top of them."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
from quick_compile import jit

from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.models.execution import ExecutionConfig
from lt_mia_jax.transfer.adapt import quantized
from lt_mia_jax.transfer.adapt.quantized import (
    QuantizedAdapted,
    dequantize_base,
    int4_group_quantize,
    quantize_base,
)
from lt_mia_jax.transfer.weightspace.quantization import Quantized, dequantize
from lt_mia_jax.trees import flatten

CONFIG = gpt2_like(16, width=8, layers=2, heads=2, context=8)


def test_groups_are_rounded_by_themselves_along_the_inputs():
    """Each group of each column in float64: no level of its grid is nearer."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(3, 12, 4)).astype(np.float32)
    stack[:, 6:] *= 100.0  # the second group of 6 inputs
    stack[0, :6, 1] = 0.0
    small = int4_group_quantize(stack, group=6)
    found = np.swapaxes(np.asarray(dequantize(small)), -1, -2)
    for layer in range(3):
        for column in range(4):
            for start in (0, 6):
                x = stack[layer, start : start + 6, column].astype(np.float64)
                y = found[layer, start : start + 6, column]
                scale = float(small.scales[layer, column, start // 6] * small.unit)
                grid = (np.arange(16) - 7.5) * scale
                nearest = grid[np.abs(x[:, None] - grid).argmin(axis=1)]
                np.testing.assert_allclose(y, nearest, rtol=1e-3, atol=1e-6)
                assert np.abs(x - y).max() <= np.abs(x).max() / 2
    assert not found[0, :6, 1].any()
    # Groups of outputs would share a scale between small and large weights.
    error = np.abs(found - stack)[:, :6].max()
    assert error < 0.1 * np.abs(stack[:, 6:]).max() / 15


def test_adapters_act_on_the_dequantized_base():
    model = LanguageModel(CONFIG, ExecutionConfig(unroll=1))
    params = jit(model._init)(jax.random.key(0))
    base = quantize_base(params, group=4)
    plain = dequantize_base(base)
    flat = flatten(base)
    packed = {n for n, x in flat.items() if isinstance(x, Quantized)}
    assert packed == {n for n in flatten(params) if "/slot_0/" in n and "kernel" in n}
    for name, leaf in flatten(params).items():
        moved = np.abs(np.asarray(flatten(plain)[name] - leaf)).max()
        assert (moved > 0) == (name in packed)
    config = LoraConfig(rank=2)
    pairs = lora.init(jax.random.key(1), params, config)
    rng = np.random.default_rng(0)
    pairs = {
        n: (a, jnp.asarray(rng.normal(size=b.shape), jnp.float32))
        for n, (a, b) in pairs.items()
    }
    both, ids = {"base": base, "adapters": pairs}, jnp.array([[3, 1, 4, 1, 5]])
    adapted = QuantizedAdapted(model, config.scale)

    new = lora.init(jax.random.key(1), params, config)

    @jit
    def forward(both, weights):
        fresh = {"base": both["base"], "adapters": new}
        logits = jax.vmap(lambda p: model.apply(p, ids))(weights)
        return adapted.apply(both, ids), adapted.apply(fresh, ids), logits

    merged = adapted.merged(both)
    weights = jax.tree.map(lambda *x: jnp.stack(x), merged, plain)
    beside, start, (together, quantized_base) = forward(both, weights)
    np.testing.assert_allclose(beside, together, atol=1e-5)
    # New adapters change nothing: the quantized base answers.
    np.testing.assert_allclose(start, quantized_base, atol=1e-5)
    assert np.abs(beside - start).max() > 1e-2


def test_examples():
    found = doctest.testmod(quantized)
    assert found.attempted > 2
    assert not found.failed
