import numpy as np
import pytest
from oracle_report import conservative_tpr
from scipy import stats

from lt_mia_jax.report.drawing.curves import (
    benjamini_hochberg,
    distribution,
    histogram,
    ks_half_width,
    roc_band,
)


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


def test_distribution_equals_counting():
    values = np.random.default_rng(3).integers(0, 30, 100) / 30
    steps = distribution(values)
    expected = [(values <= x).mean() for x in steps.x]
    np.testing.assert_allclose(steps.y, expected)
    thinned = distribution(np.random.default_rng(4).random(5000), points=50)
    assert len(thinned.x) <= 50
    assert thinned.y[-1] == 1


def test_ks_band_has_its_level():
    rng = np.random.default_rng(5)
    half = ks_half_width(150, 150)
    distances = [
        stats.ks_2samp(rng.random(150), rng.random(150)).statistic for _ in range(400)
    ]
    assert np.mean(np.array(distances) <= half) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(80), rng.random(20) * 0.01])
    assert (
        benjamini_hochberg(p, 0.05) == (stats.false_discovery_control(p) <= 0.05).sum()
    )
