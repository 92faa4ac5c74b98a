"""4-bit matrices against a loop over groups, and adapters on top of them."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.models.execution import ExecutionConfig
from lt_mia_jax.transfer.adapt import quantized
from lt_mia_jax.transfer.adapt.quantized import (
    Int4,
    QuantizedAdapted,
    dequantize_base,
    int4_group_quantize,
    quantize_base,
)
from lt_mia_jax.trees import flatten

CONFIG = gpt2_like(16, width=8, layers=2, heads=2, context=8)


def oracle(matrix, group):
    """Each group of each column by itself, in float64."""
    found = np.zeros(matrix.shape)
    for column in range(matrix.shape[1]):
        for start in range(0, len(matrix), group):
            part = matrix[start : start + group, column]
            scale = np.abs(part).max() / 7
            codes = np.round(part / scale) if scale > 0 else np.zeros(len(part))
            assert np.abs(codes).max() <= 7
            found[start : start + group, column] = codes * scale
    return found


@pytest.mark.parametrize(("rows", "group"), [(8, 4), (10, 4), (7, 64), (5, 2), (1, 2)])
def test_groups_are_rounded_by_themselves(rows, group):
    rng = np.random.default_rng(rows)
    stack = rng.normal(size=(3, rows, 4)).astype(np.float32)
    stack[0, :, 1] = 0.0
    small = jit(lambda x: int4_group_quantize(x, group))(jnp.asarray(stack))
    found = np.asarray(small.dequantized())
    expected = np.stack([oracle(x.astype(np.float64), group) for x in stack])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # A byte holds two codes; a scale is four bytes.
    size = min(group, rows + rows % 2)
    groups = -(-rows // size)
    assert small.codes.nbytes == 3 * 4 * groups * size // 2
    assert small.scales.nbytes == 3 * 4 * groups * 4


def test_what_4_bits_hold_comes_back_bit_for_bit():
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, size=(64, 5)).astype(np.float32)
    codes[0] = 7.0  # so that the scale is 1
    small = int4_group_quantize(jnp.asarray(codes))
    np.testing.assert_array_equal(small.dequantized(), codes)
    again = int4_group_quantize(small.dequantized())
    np.testing.assert_array_equal(again.codes, small.codes)
    half = int4_group_quantize(jnp.asarray(codes, jnp.bfloat16))
    assert half.dequantized().dtype == jnp.bfloat16
    for group in (0, 3):
        with pytest.raises(InputError, match="expected an even number"):
            int4_group_quantize(jnp.asarray(codes), group)


def test_adapters_act_on_the_dequantized_base():
    model = LanguageModel(CONFIG, ExecutionConfig(unroll=1))
    params = jit(model._init)(jax.random.key(0))
    base = quantize_base(params, group=4)
    plain = dequantize_base(base)
    packed = {n for n, x in flatten(base).items() if isinstance(x, Int4)}
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
    only = quantize_base(params, targets=("*/feed_forward/*",))
    kinds = {n for n, x in flatten(only).items() if isinstance(x, Int4)}
    assert kinds == {n for n in packed if "feed_forward" in n}


def test_examples():
    found = doctest.testmod(quantized)
    assert found.attempted > 2
    assert not found.failed
