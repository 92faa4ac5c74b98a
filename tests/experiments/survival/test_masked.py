"""The toy of masked-diffusion models: its texts and its reward."""

import jax.numpy as jnp
import numpy as np

from experiments.survival import masked
from experiments.survival.masked import END, FIRST, FULL, LENGTH
from lt_mia_jax.policy.diffusion.decode import DecodeSettings, Rollout


def rollout(answers):
    """Answers, written as symbols, with -1 for the end token."""
    tokens = np.full((len(answers), LENGTH), END)
    for row, answer in zip(tokens, answers, strict=True):
        row[: len(answer)] = np.where(
            np.array(answer) < 0, END, FIRST + np.array(answer)
        )
    empty = jnp.zeros((len(answers), 1), jnp.int32)
    tokens = jnp.asarray(tokens)
    log_probs = jnp.zeros(tokens.shape)
    return Rollout(
        empty, empty[:, 0], tokens, tokens, log_probs, DecodeSettings(LENGTH)
    )


def test_the_reward_counts_equal_neighbors_before_the_first_end():
    found = rollout([[4, 4, 4, 2], [7], [], [1, 1, -1, 5, 5], [3] * LENGTH])
    np.testing.assert_allclose(masked.reward(found), [2 / 3, 0, 0, 1, 1])
    np.testing.assert_array_equal(masked.symbols_of(found.tokens), [4, 1, 0, 2, LENGTH])


def test_texts_are_noisy_runs_that_end_once():
    texts = masked.examples(np.random.default_rng(0), 2000, kept=0.7, short=0.1)
    answers = np.asarray(texts.responses)
    count = masked.symbols_of(answers)
    np.testing.assert_allclose((count < FULL).mean(), 0.1, atol=0.02)
    assert count.max() == FULL
    places = np.arange(LENGTH)
    np.testing.assert_array_equal(answers == END, places >= count[:, None])
    assert set(np.unique(answers)) == {END, *range(FIRST, FIRST + masked.SYMBOLS)}
    pairs = places[1:] < count[:, None]
    equal = (answers[:, 1:] == answers[:, :-1])[pairs].mean()
    np.testing.assert_allclose(equal, 0.7 + 0.3 / masked.SYMBOLS, atol=0.02)
    assert ((texts.lengths >= 2) & (texts.lengths <= 5)).all()
