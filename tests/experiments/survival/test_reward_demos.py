"""What the demonstrations of rewards are made of."""

import numpy as np
import pytest

from experiments.survival.demos import meta_rtl
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
