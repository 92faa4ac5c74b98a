import numpy as np
import pytest
from scipy import stats

from lt_mia_jax.report.drawing.calibration import distribution, ks_half_width


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
