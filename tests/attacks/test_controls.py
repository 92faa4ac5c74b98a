import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lt_mia_jax.attacks import controls
from lt_mia_jax.errors import InputError

WORDS = "red green blue black white long short old new small".split()


def _texts(n, seed, marked=False):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    texts = [" ".join(rng.choice(WORDS, size=12)) for _ in range(n)]
    if marked:
        texts = [
            f"{t} {'late' if y else 'early'}"
            for t, y in zip(texts, labels, strict=True)
        ]
    return texts, labels


def test_shifted_texts_are_told_apart():
    texts, labels = _texts(120, 0, marked=True)
    scores = controls.text_only_baseline(texts, labels, seed=0)
    assert roc_auc_score(labels, scores) > 0.95
    assert ((scores >= 0) & (scores <= 1)).all()


def test_exchangeable_texts_are_not():
    found = [
        roc_auc_score(
            _texts(200, seed)[1],
            controls.text_only_baseline(*_texts(200, seed), seed=seed),
        )
        for seed in range(4)
    ]
    # One AUC of 100 against 100 has a standard error of 0.041.
    assert abs(np.mean(found) - 0.5) < 4 * 0.041 / 2


def test_scores_are_out_of_fold():
    # Every text carries its own word: remembered words would give AUC 1, but no word
    # of a held-out text has been seen.
    labels = np.arange(60) % 2
    texts = [f"word{i} word{i}" for i in range(60)]
    scores = controls.text_only_baseline(texts, labels, seed=0)
    np.testing.assert_array_equal(scores, 0.5)


def test_same_seed_same_scores():
    texts, labels = _texts(60, 3)
    np.testing.assert_array_equal(
        controls.text_only_baseline(texts, labels, seed=1),
        controls.text_only_baseline(texts, labels, seed=1),
    )


def test_too_few_texts_are_refused():
    with pytest.raises(InputError, match="at least 5"):
        controls.text_only_baseline(["a b"] * 8, np.arange(8) % 2, seed=0)


def test_permuted_labels_keep_their_number():
    labels = (np.arange(200) < 60).astype(np.int64)
    shuffled = controls.permuted_labels(labels, seed=0)
    assert shuffled.sum() == 60
    assert (shuffled != labels).any()
    # Members are spread over the positions: about 30 % in either half.
    assert 20 <= shuffled[:100].sum() <= 40
