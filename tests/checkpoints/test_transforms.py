import numpy as np
import pytest

from lt_mia_jax.checkpoints.transforms import (
    COPY,
    DEPTHWISE,
    FLAT,
    LINEAR,
    split_chunks,
    split_grouped,
)


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (COPY, (5,)),
        (COPY, (5, 6)),
        (LINEAR, (5, 6)),
        (split_chunks(3), (5, 12)),
        (split_chunks(3), (12,)),
        (split_grouped(groups=1), (12, 5)),
        (split_grouped(groups=1), (12,)),
        (split_grouped(groups=2), (18, 5)),
        (split_grouped(groups=2), (18,)),
        (split_grouped(groups=1, share=4), (12, 5)),
        (split_grouped(groups=3, share=2), (24, 5)),
        (split_grouped(groups=3, share=2), (24,)),
        (DEPTHWISE, (5, 1, 3)),
        (FLAT, (1, 1, 5)),
    ],
)
def test_inverse_and_stored_shape_undo_forward(operation, shape):
    stored = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    leaves = operation.forward(stored)
    assert operation.stored_shape([leaf.shape for leaf in leaves]) == shape
    np.testing.assert_array_equal(operation.inverse(leaves), stored)


def test_linear_multiplies_from_the_other_side():
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(3, 4)), rng.normal(size=4)
    (kernel,) = LINEAR.forward(weight)
    np.testing.assert_allclose(x @ kernel, weight @ x)


def test_chunks_are_consecutive():
    parts = split_chunks(2).forward(np.arange(6)[None])
    np.testing.assert_array_equal(parts, [[[0, 1, 2]], [[3, 4, 5]]])


def test_rows_are_consecutive():
    stored = np.arange(12).reshape(6, 2)
    parts = split_grouped(1).forward(stored)
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part, stored[2 * number : 2 * number + 2].T)


@pytest.mark.parametrize(("groups", "share"), [(2, 1), (3, 2), (1, 4)])
def test_queries_key_and_value_of_a_group_lie_together(groups, share):
    """Row (g, j, k) of the stored tensor is query head g * share + j, or key, value."""
    size, width = 4, 5
    rows = groups * (share + 2) * size
    stored = np.random.default_rng(0).normal(size=(rows, width))
    query, key, value = split_grouped(groups, share).forward(stored)
    for g, j, k in np.ndindex(groups, share + 2, size):
        row = stored[(g * (share + 2) + j) * size + k]
        if j < share:
            found = query[:, (g * share + j) * size + k]
        else:
            found = (key if j == share else value)[:, g * size + k]
        np.testing.assert_array_equal(found, row)


def test_depthwise_taps_of_a_channel():
    stored = np.random.default_rng(0).normal(size=(5, 1, 3))
    (taps,) = DEPTHWISE.forward(stored)
    np.testing.assert_array_equal(taps[2], stored[:, 0, 2])
