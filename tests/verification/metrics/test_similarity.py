import math

import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import similarity


def test_alignment_equals_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 6))
    center = np.eye(9) - 1 / 9
    k, h = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ center @ b @ center)

    expected = hsic(k, h) / math.sqrt(hsic(k, k) * hsic(h, h))
    assert similarity.linear_cka(x, y) == pytest.approx(expected)
    # Fewer rows than columns go by the other formula.
    wide = similarity.linear_cka(x[:3], y[:3])
    center = np.eye(3) - 1 / 3
    k, h = k[:3, :3], h[:3, :3]
    expected = hsic(k, h) / math.sqrt(hsic(k, k) * hsic(h, h))
    assert wide == pytest.approx(expected)


def test_alignment_ignores_rotation_scale_and_offset():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert similarity.linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert similarity.linear_cka(x, rng.normal(size=(20, 5))) < 0.6
    assert similarity.linear_cka(x, x[:, ::-1].copy()) == pytest.approx(1)


def test_bad_input_is_told():
    with pytest.raises(InputError, match="x 3, y 4"):
        similarity.linear_cka(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(InputError, match="constant"):
        similarity.linear_cka(np.ones((3, 2)), np.ones((3, 2)))
