import numpy as np
import pytest
from oracle_report import conservative_tpr
from scipy import stats

from lt_mia_jax.report.drawing.roc import roc_band


@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "ties"])
def test_roc_equals_the_definition(decimals):
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 80), rng.normal(0, 1, 60)
    if decimals is not None:
        members, others = members.round(decimals), others.round(decimals)
    band = roc_band(members, others, n_boot=5)
    expected = [conservative_tpr(members, others, rate + 1e-12) for rate in band.fpr]
    np.testing.assert_allclose(band.tpr, expected, atol=1e-12)
    assert band.fpr[0] == 0
    assert band.fpr[-1] == band.tpr[-1] == 1


def test_roc_band_covers_the_truth():
    # Over many data sets, a pointwise 95 % band holds the true curve about as often.
    truth = stats.norm.sf(stats.norm.isf(0.1) - 1.5)
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        members, others = rng.normal(1.5, 1, 200), rng.normal(0, 1, 200)
        band = roc_band(members, others, n_boot=200)
        at = int(np.abs(band.fpr - 0.1).argmin())
        inside += band.low[at] <= truth <= band.high[at]
    assert 0.83 <= inside / 60 <= 1


def test_roc_band_is_reproducible_and_ordered():
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    first, second = roc_band(members, others), roc_band(members, others)
    np.testing.assert_array_equal(first.low, second.low)
    assert (first.low <= first.high).all()
    assert (np.diff(first.tpr) >= 0).all()
