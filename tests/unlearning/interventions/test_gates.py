import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import VOCAB, random_ids

from lt_mia_jax.unlearning.interventions import gates

D, K = 16, 2


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prompt_similarity(table, ids, mask, centroids):
    embeddings = gates.masked_mean(jnp.asarray(table)[ids], mask)
    return gates.cosine_similarity(embeddings, centroids)


def test_the_gate_sees_the_prompt_only():
    attention = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    labels = np.array([[0, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    attention, labels = attention.astype(np.uint8), labels.astype(np.uint8)
    mask = gates.prompt_mask(attention, labels)
    expected = [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(mask, expected)

    table, centroids = numbers(VOCAB, D), numbers(K, D, seed=3)
    ids = random_ids(shape=(3, 6))
    found = prompt_similarity(table, ids, mask, centroids)
    for b, k in np.ndindex(2, K):
        mean = np.float64(table[ids[b, np.asarray(mask[b]) > 0]]).mean(axis=0)
        cosine = mean @ centroids[k] / np.linalg.norm(mean)
        cosine /= np.linalg.norm(centroids[k])
        np.testing.assert_allclose(found[b, k], cosine, rtol=1e-5)
    np.testing.assert_array_equal(found[2], 0)  # A prompt without tokens.

    other = np.where(mask, ids, (ids + 7) % VOCAB)
    np.testing.assert_array_equal(
        prompt_similarity(table, other, mask, centroids), found
    )
    whole = prompt_similarity(table, ids, attention, centroids)
    assert (np.asarray(whole != found).all(axis=1)).all()


@pytest.mark.parametrize("weighting", ["mean", "similarity"])
def test_weights_of_the_gate(weighting):
    similarity = np.array(
        [[0.9, 0.6, 0.2], [0.5, 0.4, 0.3], [-0.5, 0.7, 0.55]], np.float32
    )
    expected = {
        "mean": [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]],
        "similarity": [[0.9 / 1.5, 0.6 / 1.5, 0], [0, 0, 0], [0, 1, 0]],
    }[weighting]
    found = gates.gate_weights(jnp.asarray(similarity), 0.55, weighting=weighting)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # A threshold below zero: no negative shares, and no division by zero.
    open_to_all = gates.gate_weights(
        jnp.array([[-0.2, -0.1], [0.3, -0.3]]), -1.0, weighting=weighting
    )
    expected = [[0.5, 0.5]] * 2 if weighting == "mean" else [[0, 0], [1, 0]]
    np.testing.assert_allclose(open_to_all, expected)


def test_cosine_of_nothing_is_zero():
    rows = np.stack([np.zeros(D), np.ones(D)]).astype(np.float32)
    np.testing.assert_allclose(
        gates.cosine_similarity(rows, -2 * rows), [[0, 0], [0, -1]], atol=1e-6
    )
