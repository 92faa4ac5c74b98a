import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_unlearning_metrics import answer_oracle, strength_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import memorization
from lt_mia_jax.verification.metrics.memorization import AnswerStatistics


def random_case(batch=7, steps=12, vocabulary=9, seed=0):
    """Answers in the middle of padded rows; logits that often hit, with ties."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(vocabulary, size=(batch, steps)).astype(np.int32)
    logits = np.round(2 * rng.normal(size=(batch, steps, vocabulary)), 1)
    logits[:, :-1][rng.random((batch, steps - 1)) < 0.7, :] -= 2
    for b in range(batch):
        for t in np.flatnonzero(rng.random(steps - 1) < 0.7):
            logits[b, t, ids[b, t + 1]] = 4
    mask = np.zeros((batch, steps), np.uint8)
    for b in range(batch):
        start = rng.integers(0, 4)
        mask[b, start : start + rng.integers(2, 8)] = 1
    return logits.astype(np.float32), ids, mask


def from_matches(*rows):
    """Statistics whose answers have these matches, the end token's included."""
    width = max(map(len, rows)) + 1
    match, valid = np.zeros((2, len(rows), width), bool)
    for i, row in enumerate(rows):
        match[i, : len(row)] = row
        valid[i, : len(row)] = True
    zeros = np.zeros(match.shape, np.float32)
    return AnswerStatistics(zeros, match, np.ones(match.shape, np.int32), valid)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_and_their_means_equal_the_definition(seed):
    logits, ids, mask = random_case(seed=seed)
    stats = memorization.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    items = answer_oracle(logits, ids, mask)
    for name, column in (("nll", 0), ("match", 1), ("rank", 2)):
        found, valid = np.asarray(getattr(stats, name)), np.asarray(stats.valid)
        expected = [step[column] for steps in items for step in steps]
        np.testing.assert_allclose(found[valid], expected, rtol=1e-5, atol=1e-6)
        assert not found[~valid].any()
    np.testing.assert_allclose(
        memorization.probability(stats),
        [np.exp(-np.mean([s[0] for s in steps])) for steps in items],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        memorization.slot_log_rank(stats),
        [np.mean([np.log(s[2]) for s in steps]) for steps in items],
        rtol=1e-12,
    )
    np.testing.assert_array_equal(
        memorization.slot_accuracy(stats), [all(s[1] for s in steps) for steps in items]
    )


@pytest.mark.parametrize("drop_final", [True, False])
def test_matches_equal_the_definition(drop_final):
    logits, ids, mask = random_case(batch=40, seed=4)
    stats = memorization.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    hits = [
        [s[1] for s in steps][: len(steps) - drop_final]
        for steps in answer_oracle(logits, ids, mask)
    ]
    expected = [np.mean(row) if row else np.nan for row in hits]
    found = memorization.exact_memorization(stats, drop_final=drop_final)
    np.testing.assert_allclose(found, expected)
    expected = [strength_oracle(row) if row else np.nan for row in hits]
    found = memorization.extraction_strength(stats, drop_final=drop_final)
    np.testing.assert_allclose(found, expected)
    assert len(np.unique(found[~np.isnan(found)])) > 5  # the case tells them apart


def test_hand_cases():
    # The last label is the end token, which no case of these counts.
    stats = from_matches(
        [1, 1, 1, 1, 0],  # all of the answer
        [1, 1, 1, 0, 1],  # last token wrong
        [0, 1, 1, 1, 1],  # only the first wrong
        [0, 0, 0, 0, 1],
        [1],  # an answer of nothing but the end token
    )
    strength = memorization.extraction_strength(stats)
    np.testing.assert_array_equal(strength, [1, 0, 3 / 4, 0, np.nan])
    exact = memorization.exact_memorization(stats)
    np.testing.assert_array_equal(exact, [1, 3 / 4, 3 / 4, 0, np.nan])
    assert np.nanmean(strength) == 1.75 / 4
    whole = memorization.extraction_strength(stats, drop_final=False)
    np.testing.assert_allclose(whole, [0, 1 / 5, 4 / 5, 1 / 5, 1])


def test_a_span_alone_is_scored_by_its_own_mask():
    logits, ids, mask = random_case(seed=7)
    slot = np.zeros_like(mask)
    slot[:, 5] = 1
    stats = memorization.answer_statistics(*map(jnp.asarray, (logits, ids, slot)))
    assert (np.asarray(stats.valid).sum(axis=1) == 1).all()
    expected = logits[:, 4].argmax(axis=1) == ids[:, 5]
    np.testing.assert_array_equal(memorization.slot_accuracy(stats), expected)
    # Neither the prompt's logits nor those after the span matter.
    changed = np.full_like(logits, np.nan)
    changed[:, 4] = logits[:, 4]
    again = memorization.answer_statistics(*map(jnp.asarray, (changed, ids, slot)))
    jax.tree.map(np.testing.assert_array_equal, stats, again)


def test_padding_and_half_precision():
    logits, ids, mask = random_case(seed=9)
    short = memorization.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    pad = ((0, 0), (0, 5))
    wide = memorization.answer_statistics(
        jnp.pad(jnp.asarray(logits), (*pad, (0, 0)), constant_values=jnp.nan),
        jnp.pad(jnp.asarray(ids), pad),
        jnp.pad(jnp.asarray(mask), pad),
    )
    np.testing.assert_array_equal(
        memorization.mean_nll(wide), memorization.mean_nll(short)
    )
    half = jnp.asarray(logits, jnp.bfloat16)
    stats = memorization.answer_statistics(half, jnp.asarray(ids), jnp.asarray(mask))
    assert stats.nll.dtype == jnp.float32
    items = answer_oracle(np.asarray(half, np.float32), ids, mask)
    expected = [np.mean([s[0] for s in steps]) for steps in items]
    np.testing.assert_allclose(memorization.mean_nll(stats), expected, rtol=1e-5)


def test_bad_input_is_told():
    logits, ids, mask = random_case()
    logits[2, :, 0] = np.nan
    stats = memorization.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    with pytest.raises(InputError, match=r"NaN in 1 of 7 answers, first \[2\]"):
        memorization.probability(stats)
    none = jax.tree.map(lambda x: x[:0], stats)
    with pytest.raises(InputError, match="at least one item"):
        memorization.extraction_strength(none)
