"""Rounding and relearning on models that know nothing, and a little after lessons."""

import numpy as np
import pytest

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification import stress
from lt_mia_jax.verification.evaluate import examine
from lt_mia_jax.verification.metrics.robustness import quantize


def test_rounding_and_relearning(subjects, splits):
    rows = splits["forget25"]
    rounded = quantize(subjects[0].params, 16)
    fine = examine(subjects[0]._replace(params=rounded), rows)
    plain = examine(subjects[0], rows)
    np.testing.assert_allclose(fine.probability, plain.probability, rtol=1e-3)
    curve = stress.relearn(
        subjects[0], rows[::2], rows[::2], steps=(0, 3), learning_rate=1e-2
    )
    start = plain.probability[::2].mean()
    assert curve[0].mean() == pytest.approx(start, rel=1e-4)
    assert curve[1].mean() > 1.5 * start
    one, other = subjects
    three = {"before": one, "after": other, "retrained": other}
    entry = stress.rounding_card(three, rows, 16, grid="channel")
    assert entry.recovered is None  # neither model knows anything
    assert set(entry.models) == set(three)
    entry = stress.relearning_card(three, rows)
    assert (entry.taught, entry.asked) == (-(-len(rows) // 2), len(rows) // 2)
    assert entry.area == Estimate(0.0, 0.0, 0.0)
    assert entry.robustness.value == 1
    assert stress.relearning_card(three, rows[:1]) is None
    with pytest.raises(InputError, match="at least one each"):
        stress.relearn(subjects[0], rows, [])
    with pytest.raises(InputError, match="rising"):
        stress.relearn(subjects[0], rows, rows, steps=(3, 0))
