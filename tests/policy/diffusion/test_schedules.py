"""Counts cover every response, in the steps that the definition says."""

import math

import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.diffusion.decode import DecodeSettings
from lt_mia_jax.policy.diffusion.schedules import (
    ascending_blocks,
    ascending_counts,
    ascending_end_factors,
    block_counts,
    uniform_counts,
    uniform_end_factors,
)


def test_ascending_steps_double_and_cover_the_response():
    for length in range(16, 257):
        counts = ascending_counts(length)
        assert len(counts) == math.floor(math.log2(length))
        assert sum(counts) == length
        np.testing.assert_array_equal(counts[:-1], np.exp2(np.arange(len(counts) - 1)))
        # 1 + 2 + ... = 2^s - 1: the last takes its power, one more, and what is over.
        assert counts[-1] == 2 ** (len(counts) - 1) + 1 + length - 2 ** len(counts)


def test_known_schedules():
    assert ascending_counts(256) == (1, 2, 4, 8, 16, 32, 64, 129)
    assert ascending_blocks(256, 1) == (256,)
    assert ascending_blocks(256, 3) == (63, 64, 129)
    assert ascending_blocks(16, 4) == ascending_counts(16)
    assert uniform_counts(256, 100) == (3,) * 56 + (2,) * 44
    assert block_counts(12, 6, 4) == (2,) * 6


@pytest.mark.parametrize("length", [16, 23, 64, 100])
def test_blocks_of_ascending_steps_are_filled_one_after_the_other(length):
    counts = ascending_counts(length)
    for blocks in range(1, len(counts) + 1):
        sizes = ascending_blocks(length, blocks)
        assert len(sizes) == blocks
        settings = DecodeSettings(length, counts, blocks=sizes)
        assert settings.bounds[-1] == length
        # All but the first block are filled in one step each.
        assert sizes[1:] == counts[len(counts) - blocks + 1 :]


def test_factors_of_the_end_token():
    np.testing.assert_allclose(uniform_end_factors(8), np.linspace(0.4, 1, 8))
    assert uniform_end_factors(1) == (1.0,)
    for length in (16, 100, 256):
        factors = ascending_end_factors(length)
        counts = ascending_counts(length)
        # The share is that of the tokens committed after the step, of 2^S.
        done = np.cumsum([2**s for s in range(len(counts))]) / 2 ** len(counts)
        np.testing.assert_allclose(factors, 0.01 + 0.99 * done)
        assert max(factors) < 1  # trap: the last step still waits a little


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_counts(4, 5), "steps = 5, expected 1 to the length, 4"),
        (lambda: block_counts(10, 5, 4), "block = 4 must divide length = 10"),
        (lambda: block_counts(8, 3, 4), "block = 4 must divide"),
        (lambda: ascending_counts(1), "length = 1, expected at least 2"),
        (lambda: ascending_blocks(16, 5), "blocks = 5, expected 1 to 4"),
        (lambda: uniform_end_factors(0), "steps = 0"),
        (lambda: DecodeSettings(8, (4, 3)), "counts add up to 7, expected the length"),
        (lambda: DecodeSettings(8, (6, 2), blocks=(4, 4)), "do not fill blocks"),
        (lambda: DecodeSettings(8, (8,), end_factors=(1.0, 1.0)), "2 end_factors"),
        (lambda: DecodeSettings(8, (8,), end_factors=(1.5,)), "0 to 1"),
        (lambda: DecodeSettings(8, temperature=-1.0), "temperature = -1"),
        (lambda: DecodeSettings(0), "must be at least 1"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
