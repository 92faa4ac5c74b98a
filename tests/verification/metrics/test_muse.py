import math

import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import muse


def test_priv_leak_signs():
    for retrained in (0.4, 0.5, 0.61):
        assert muse.priv_leak(retrained, retrained) == 0
        assert muse.priv_leak(1.0, retrained) == -100
        assert muse.priv_leak(0.9, retrained) < 0 < muse.priv_leak(0.1, retrained)
    assert muse.priv_leak(0.0, 0.5) == 100


def test_priv_leak_is_the_authors_number():
    """Their AUC has the forget texts as class 0: one minus ours, over the retrained."""
    for ours, theirs in ((0.93, 0.4772), (0.2, 0.5393)):
        flipped, base = 1 - ours, 1 - theirs
        expected = 100 * (flipped - base) / base
        assert muse.priv_leak(ours, theirs) == pytest.approx(expected)


def test_areas_count_pairs():
    # Pairs won: 3 of 4; half of two ties and none of two.
    assert muse.member_auc(np.array([3.0, 1]), np.array([2.0, 0])) == 0.75
    assert muse.member_auc(np.array([1.0, 1]), np.array([1.0, 2])) == 0.25
    assert muse.priv_leak(0.75, 0.25) == 100 * (0.25 - 0.75) / 0.75


def test_verbatim_and_knowledge_memorisation():
    assert muse.cut_at_stop("Paris\n\nQuestion: next") == "Paris"
    assert muse.cut_at_stop("Paris Question: x\n\ny") == "Paris "
    assert muse.cut_at_stop("Paris") == "Paris"
    answers, true = ["a red cat Question: dog sun", "dog"], ["a red cat", "cat"]
    np.testing.assert_array_equal(muse.knowledge_memorization(answers, true), [1, 0])
    verbatim = muse.verbatim_memorization(answers, true)
    np.testing.assert_allclose(verbatim, [2 * (3 / 6) / (3 / 6 + 1), 0])


def test_bad_input_is_told():
    with pytest.raises(InputError, match="AUC 1"):
        muse.priv_leak(0.5, 1.0)
    with pytest.raises(InputError, match="auc_unlearned is nan"):
        muse.priv_leak(math.nan, 0.5)
    with pytest.raises(InputError, match="holdout scores is NaN"):
        muse.member_auc(np.ones(1), np.array([math.nan]))
    with pytest.raises(InputError, match="at least one item"):
        muse.member_auc(np.zeros(0), np.ones(1))
