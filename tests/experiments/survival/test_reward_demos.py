"""What the demonstrations of rewards are made of."""

import numpy as np
import pytest

from experiments.survival.demos import meta_rtl, n2n
from experiments.survival.toy import answers


@pytest.mark.parametrize("name", meta_rtl.SOURCES)
def test_sources_answer_the_targets_questions_their_own_way(name):
    source = meta_rtl.SOURCES[name]
    texts = source.texts(np.random.default_rng(0), 400)
    plain = meta_rtl.TARGET.texts(np.random.default_rng(0), 400)
    ids, right = np.asarray(texts.ids), np.asarray(plain.ids)
    np.testing.assert_array_equal(ids[:, :6], right[:, :6])
    symbols = ids[:, 1:5] - meta_rtl.FIRST
    other = meta_rtl.FIRST + answers(source.other, symbols)
    same = (ids == right).all(axis=1)
    assert (same | (ids[:, 6:-1] == other).all(axis=1)).all()
    assert same.mean() == pytest.approx(source.right, abs=0.1)


def test_rollouts_are_counted_until_a_window_of_epochs_is_good_enough():
    rewards = np.array([[0.0] * 5] * 4 + [[1.0] * 5] * 6)
    # A window of five epochs first holds four good ones after the eighth.
    assert n2n.rollouts_to(rewards, 0.8) == 8 * 5
    assert n2n.rollouts_to(rewards, 1.1) == float("inf")
    assert n2n.smoothed(rewards)[-1] == pytest.approx(1.0)
