import numpy as np
import pytest

from lt_mia_jax.checkpoints.transforms import Copy, Linear, SplitChunks, SplitPerHead


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (Copy(), (5,)),
        (Copy(), (5, 6)),
        (Linear(), (5, 6)),
        (SplitChunks(3), (5, 12)),
        (SplitChunks(3), (12,)),
        (SplitPerHead(heads=2), (18, 5)),
        (SplitPerHead(heads=2), (18,)),
        (SplitPerHead(heads=3, parts=2), (12, 4)),
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
    (kernel,) = Linear().forward(weight)
    np.testing.assert_allclose(x @ kernel, weight @ x)


def test_chunks_are_consecutive():
    parts = SplitChunks(2).forward(np.arange(6)[None])
    np.testing.assert_array_equal(parts, [[[0, 1, 2]], [[3, 4, 5]]])


def test_parts_of_a_head_lie_together():
    """Row (h, part, k) of the stored tensor is column (h, k) of the part."""
    heads, parts, size, width = 2, 3, 4, 5
    stored = np.random.default_rng(0).normal(size=(heads * parts * size, width))
    leaves = SplitPerHead(heads=heads).forward(stored)
    for h, part, k in np.ndindex(heads, parts, size):
        row = stored[(h * parts + part) * size + k]
        np.testing.assert_array_equal(leaves[part][:, h * size + k], row)
