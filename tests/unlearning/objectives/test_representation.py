from functools import partial

import jax
import numpy as np
import pytest

from lt_mia_jax.unlearning.objectives import representation


@pytest.mark.parametrize("kind", ["isotropic", "positive"])
def test_control_vectors(key, kind):
    draw = partial(representation.control_vector, kind=kind)
    vector = np.asarray(draw(key, 4000))
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
    np.testing.assert_array_equal(vector, draw(key, 4000))
    assert np.abs(vector - draw(jax.random.key(1), 4000)).max() > 1e-3
    to_ones = vector.sum() / np.sqrt(4000)
    assert abs(to_ones - (np.sqrt(3) / 2 if kind == "positive" else 0)) < 0.06
