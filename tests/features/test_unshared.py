"""Two models of which one has more token ids, against NumPy in float64."""

import numpy as np
import pytest
from oracle_features import largest, log_softmax, rank

from lt_mia_jax.features import token_statistics
from lt_mia_jax.features.lt_mia import lt_mia_features

SHARED, MORE, K = 70, 83, 4
WIDTHS = [(MORE, SHARED), (SHARED, MORE)]


def draw(widths, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    target, reference = (2 * rng.standard_normal((3, 9, width)) for width in widths)
    if ties:
        target, reference = np.round(target), np.round(reference)
    ids = rng.integers(0, SHARED, (3, 9)).astype(np.int32)
    attention = (np.arange(9)[None] < np.array([[9], [6], [1]])).astype(np.int32)
    return np.float32(target), np.float32(reference), ids, attention


def moments(log_weights, values):
    """Mean and variance under weights that need not be normalized."""
    p = np.exp(log_weights) / np.exp(log_weights).sum()
    mean = (p * values).sum()
    return mean, (p * (values - mean) ** 2).sum()


def step(a, r, y):
    """The definition: own ids for what is a model's own, shared ids for the rest."""
    target, reference = log_softmax(a), log_softmax(r)
    cut_t, cut_r = target[:SHARED], reference[:SHARED]
    own_mean, own_var = moments(target, target)
    cross_mean, cross_var = moments(cut_r, cut_t)
    return {
        "target_log_prob": target[y],
        "reference_log_prob": reference[y],
        "target_mean": own_mean,
        "target_var": own_var,
        "reference_mean": moments(reference, reference)[0],
        "cross_mean": cross_mean,
        "cross_var": cross_var,
        "target_rank": rank(a[:SHARED], a[y]),
        "reference_rank": rank(r[:SHARED], r[y]),
        "target_top1": largest(a[:SHARED], 1)[0] == y,
    }


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("vocab_chunk", "row_block"), [(None, None), (20, 6)])
def test_definition(widths, vocab_chunk, row_block):
    inputs = draw(widths, ties=True)
    target, reference, ids, _ = inputs
    stats = token_statistics(*inputs, k=K, vocab_chunk=vocab_chunk, row_block=row_block)
    assert int(stats.valid.sum()) == 13
    for b, t in np.argwhere(np.asarray(stats.valid)):
        expected = step(target[b, t], reference[b, t], ids[b, t + 1])
        for name, value in expected.items():
            found = float(getattr(stats, name)[b, t])
            assert found == pytest.approx(float(value), rel=2e-5, abs=2e-5), name


@pytest.mark.parametrize("widths", WIDTHS)
def test_lists_and_ranks_are_those_of_the_shared_ids(widths):
    target, reference, *rest = draw(widths)
    cut = token_statistics(target[..., :SHARED], reference[..., :SHARED], *rest, k=K)
    found = token_statistics(target, reference, *rest, k=K)
    for name in ("columns", "target_rank", "reference_rank", "target_top1"):
        np.testing.assert_array_equal(getattr(found, name), getattr(cut, name))
    # Nothing is left of the difference if the other ids have no probability.
    wide = target if widths[0] == MORE else reference
    wide[..., SHARED:] = -np.inf
    found = token_statistics(target, reference, *rest, k=K)
    for name, one, other in zip(cut._fields, found, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("widths", WIDTHS)
def test_normalized_columns_use_all_ids_of_each_model(widths):
    inputs = draw(widths)
    stats = token_statistics(*inputs, k=K, log_probabilities=True)
    truth = np.asarray(stats.target_log_prob - stats.reference_log_prob)
    np.testing.assert_allclose(stats.columns[..., 0], truth, atol=2e-5)
    features, mask = lt_mia_features(*inputs, k=K)
    assert features.shape == (3, 9, 7 * K + 14)
    assert int(mask.sum()) == 13


@pytest.mark.parametrize("widths", WIDTHS)
def test_vocab_size_cuts_both(widths):
    target, reference, *rest = draw(widths)
    cut = token_statistics(target[..., :60], reference[..., :60], *rest, vocab_size=60)
    found = token_statistics(target, reference, *rest, vocab_size=60)
    for one, other in zip(found, cut, strict=True):
        np.testing.assert_array_equal(one, other)
