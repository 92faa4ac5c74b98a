"""The decoder against a slow one, its order, exact counts, and rows on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_world import DENOISER, END, LENGTHS, MASK, PARAMS, PROMPTS, decoded
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.diffusion.decode import (
    DecodeSettings,
    commits,
    decode,
    trajectory,
)
from lt_mia_jax.policy.diffusion.schedules import (
    ascending_blocks,
    ascending_counts,
    ascending_end_factors,
)

KEY = jax.random.key(9)
SETTINGS = {
    "ascending": DecodeSettings(
        8, ascending_counts(8), end_factors=ascending_end_factors(8), temperature=0.7
    ),
    "blocks": DecodeSettings(8, ascending_counts(8), blocks=ascending_blocks(8, 2)),
    "greedy": DecodeSettings(
        6, (2, 2, 2), end_factors=(0.2, 0.5, 1.0), temperature=0.0
    ),
    "threshold": DecodeSettings(8, blocks=(4, 4), threshold=0.5, temperature=0.5),
}


def run(name, rows=slice(None)):
    numbers = np.arange(3)[rows]
    return decode(
        DENOISER,
        PARAMS,
        PROMPTS[rows],
        LENGTHS[rows],
        settings=SETTINGS[name],
        key=KEY,
        rows=numbers,
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_it_decodes_as_the_definition(name):
    found, settings = run(name), SETTINGS[name]
    states, new = trajectory(found.tokens, found.steps, settings.steps, MASK)
    assert found.settings == settings
    assert (found.tokens != MASK).all()
    for row in range(3):
        tokens, expected, steps, log_probs = decoded(settings, KEY, row)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        np.testing.assert_array_equal(found.steps[row], steps)
        np.testing.assert_allclose(found.log_probs[row], log_probs, atol=2e-5)
        # The recorded states are those that the slow decoder went through.
        for step, state in enumerate(expected):
            np.testing.assert_array_equal(states[step, row], state)
        for step in range(settings.steps):
            changed = np.asarray(states[step, row] != states[step + 1, row])
            np.testing.assert_array_equal(new[step, row], changed)
    if settings.counts:
        counts = np.broadcast_to(settings.counts, (3, settings.steps))
        np.testing.assert_array_equal(new.sum(axis=2).T, counts)
    assert (found.tokens == END).any()  # or factors were not tested


@pytest.mark.parametrize("name", ["ascending", "threshold"])
def test_a_row_of_a_batch_is_the_row_alone(name):
    together = run(name)
    for row in range(3):
        alone = run(name, slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.steps[0], together.steps[row])


def test_exactly_so_many_are_committed_among_equals():
    unknown = np.ones((4, 6), bool)
    unknown[1, :3] = unknown[2, 1] = unknown[3] = False
    equal = jnp.full((4, 6), 0.25).at[0, 4].set(0.5).at[2, 5].set(0.0)
    found = commits(equal, jnp.asarray(unknown), bounds=(6,), count=3)
    expected = [[0, 1, 4], [3, 4, 5], [0, 2, 3], []]
    for row, places in enumerate(expected):
        np.testing.assert_array_equal(np.flatnonzero(found[row]), places)
    # A confidence of 0, such as an end token's with the factor 0, is still a candidate.
    found = commits(equal, jnp.asarray(unknown), bounds=(6,), count=5)
    assert found[2].sum() == 5


def test_only_the_first_unfinished_block_is_filled():
    confidence = jnp.array([[0.1, 0.2, 0.9, 0.95], [0.1, 0.2, 0.9, 0.95]])
    unknown = jnp.array([[True, True, True, True], [False, False, True, True]])
    found = commits(confidence, unknown, bounds=(2, 4), count=1)
    np.testing.assert_array_equal(np.argmax(found, axis=1), [1, 3])
    sure = commits(confidence, unknown, bounds=(2, 4), count=None, threshold=0.8)
    np.testing.assert_array_equal(sure.sum(axis=1), [1, 2])


def test_a_factor_postpones_an_end_token_and_does_not_replace_it():
    """Trap: it scales the ranking only, so greedy proposals stay what they were."""
    one_pass = DecodeSettings(8, (8,), temperature=0.0)
    plain = decode(DENOISER, PARAMS, PROMPTS, LENGTHS, settings=one_pass, key=KEY)
    first = DecodeSettings(8, (1, 7), end_factors=(0.0, 1.0), temperature=0.0)
    found = decode(DENOISER, PARAMS, PROMPTS, LENGTHS, settings=first, key=KEY)
    ends = np.asarray(plain.tokens == END)
    assert (ends.any(axis=1) & ~ends.all(axis=1)).any()
    committed_first = np.asarray(found.steps == 0)
    assert not (committed_first & ends)[~ends.all(axis=1)].any()
    np.testing.assert_array_equal(
        found.tokens[committed_first], plain.tokens[committed_first]
    )


def test_a_rollout_passes_through_jit_and_keeps_its_settings():
    found = run("greedy")
    again = jit(lambda r: r)(found)
    assert again.settings == found.settings
    again.check(SETTINGS["greedy"])
    with pytest.raises(InputError, match="is not its policy"):
        found.check(SETTINGS["blocks"])
