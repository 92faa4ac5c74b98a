import numpy as np
import pytest

from lt_mia_jax.report.drawing.histograms import histogram


def test_histogram_shares_sum_to_one_and_count_outliers():
    rng = np.random.default_rng(2)
    far = np.concatenate([rng.normal(size=999), [1e12]])
    near = rng.normal(size=500)
    result = histogram((far, near))
    for shares in result.shares:
        assert shares.sum() == pytest.approx(1)
    assert 1 <= result.beyond <= 20
    assert result.edges[-1] < 10


def test_histogram_of_constant_scores():
    result = histogram((np.full(5, 2.0),))
    assert result.shares[0].sum() == pytest.approx(1)
