"""Codes of a few bits against a search by hand."""

import numpy as np
import pytest

from lt_mia_jax.transfer.weightspace.quantization import (
    BITS,
    CLIPS,
    dequantize,
    groups,
    nbytes,
    quantize,
)


def nearest_levels(row, bits, size, unit):
    """One row in float64: each group's best range, each value's nearest level."""
    found = []
    for start in range(0, len(row), size):
        group = row[start : start + size]
        best = None
        for clip in CLIPS:
            scale = np.float16(clip * np.abs(group).max() / ((2**bits - 1) / 2) / unit)
            step = float(scale) * unit
            levels = [(code - (2**bits - 1) / 2) * step for code in range(2**bits)]
            values = [min(levels, key=lambda level: abs(level - x)) for x in group]
            error = sum((v - x) ** 2 for v, x in zip(values, group, strict=True))
            if best is None or error < best[0]:
                best = (error, values)
        found += best[1]
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_value_becomes_the_nearest_level_of_the_best_range(bits):
    values = np.random.default_rng(bits).normal(size=(3, 20)) * 1e-6
    values = values.astype(np.float32)
    found = quantize(values, bits, group=8)
    number, size = groups(20, bits, 8)
    assert (number, size) == (3, 7 if bits == 8 else 8)
    largest = max(
        np.abs(row[i : i + size]).max() for row in values for i in range(0, 20, size)
    )
    unit = largest / ((2**bits - 1) / 2)
    expected = [
        nearest_levels(row.astype(np.float64), bits, size, unit) for row in values
    ]
    np.testing.assert_allclose(dequantize(found), expected, rtol=1e-5, atol=1e-12)


def test_more_bits_are_nearer_and_bytes_are_those_of_the_codes():
    values = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    errors = []
    for bits in BITS:
        found = quantize(values, bits, group=32)
        errors.append(np.abs(dequantize(found) - values).max())
        scales = 0 if bits == 32 else 2 * 4 * 3
        assert nbytes(found) == 4 * 96 * bits // 8 + scales + 4
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] == 0


def test_zeros_stay_zeros_and_padding_is_cut():
    values = np.zeros((2, 7), np.float32)
    values[1] = 3.0
    for bits in BITS:
        found = dequantize(quantize(values, bits, group=4))
        assert found.shape == (2, 7)
        assert not found[0].any()
        np.testing.assert_allclose(found[1], 3.0, rtol=1e-3)


def test_wrong_settings_are_refused():
    for bits, group in ((3, 8), (8, 0)):
        with pytest.raises(ValueError, match=f"bits = {bits}"):
            quantize(np.zeros(4), bits, group)
