"""LT-MIA features: golden values, worked vectors, definition, invariances."""

import jax
import numpy as np
import oracle_features
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.features import (
    FeatureLayout,
    assemble,
    lt_mia_features,
    token_statistics,
)

WORKED = [
    "-1 0 .61315 .38685 0 -1 .61315 .61315 -1 0 .38685 .38685 -1 0 .77371 0 0 .77371"
    " 1.52374 .52374 1.0 1.90341 .37966 1.23051 .70676 .67290 .32710 1.34580",
    "0 0 .61315 .77371 0 -1 .38685 .38685 -1 0 .38685 .61315 -1 0 1.0 0 0 .89824"
    " 2.28307 1.93727 .34580 1.90341 .37966 1.23051 .70676 .67290 .32710 1.34580",
]


@pytest.mark.parametrize("k", [20, 5])
def test_golden(golden, k):
    z = np.load(golden / f"lt_mia_features_k{k}.npz")
    features, mask = lt_mia_features(
        z["target_logits"],
        z["reference_logits"],
        z["input_ids"].astype(np.int32),
        z["attention_mask"].astype(np.int32),
        k=int(z["k"]),
    )
    assert features.dtype == np.float32
    np.testing.assert_array_equal(mask, z["mask"].astype(bool))
    np.testing.assert_allclose(features, z["features"], atol=1e-4, rtol=0)


def worked_input():
    target = [[2, 1, 0, -1, 0], [0, 3, 1, 1, -2], [1, 1, 1, 0, 4], [9, 9, 9, 9, 9]]
    reference = [[1, 2, 0, 0, -1], [0, 2, 2, 1, -1], [0, 2, 1, 0, 3], [9, 9, 9, 9, 9]]
    return (
        np.array([target], np.float32),
        np.array([reference], np.float32),
        np.array([[0, 1, 3, 4]], np.int32),
        np.array([[1, 1, 1, 0]], np.int32),
    )


@pytest.mark.parametrize("vocab_chunk", [None, 2, 3])
def test_worked_vector(vocab_chunk):
    features, mask = lt_mia_features(*worked_input(), k=2, vocab_chunk=vocab_chunk)
    np.testing.assert_array_equal(mask, [[True, True, False, False]])
    expected = np.zeros((1, 4, 28))
    expected[0, :2] = [np.array(row.split(), float) for row in WORKED]
    np.testing.assert_allclose(features, expected, atol=6e-6)


def draw(seed, ties):
    rng = np.random.default_rng(seed)
    target, reference = 3 * rng.standard_normal((2, 3, 7, 40))
    if ties:
        target, reference = np.round(target), np.round(reference)
    ids = rng.integers(0, 40, (3, 7)).astype(np.int32)
    attention = np.arange(7)[None, :] < np.array([7, 4, 1])[:, None]
    return target.astype(np.float32), reference.astype(np.float32), ids, attention


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 6, 40])
def test_oracle(ties, k):
    inputs = draw(k, ties)
    features, mask = lt_mia_features(*inputs, k=k)
    expected, expected_mask = oracle_features.lt_mia_features(*inputs, k)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(features, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("log_probabilities", [False, True])
def test_entries_that_both_models_mask(log_probabilities):
    """Logits of -inf in both models count as equal and impossible."""
    target, reference, ids, attention = draw(0, False)
    ids = np.minimum(ids, 34)
    options = {"k": 9, "log_probabilities": log_probabilities}

    def features(fill):
        masked = [x.copy() for x in (target, reference)]
        for x in masked:
            x[..., 35:] = fill
        return lt_mia_features(*masked, ids, attention, **options)[0]

    found = features(-np.inf)
    assert np.isfinite(found).all()
    if not log_probabilities:  # the lowest number is as good as -inf
        lowest = features(np.finfo(np.float32).min)
        np.testing.assert_allclose(found, lowest, atol=2e-5)


def test_an_entry_that_one_model_masks():
    target, reference, ids, attention = draw(0, False)
    ids = np.minimum(ids, 38)
    masked = target.copy()
    masked[..., 39] = -np.inf
    found, mask = lt_mia_features(masked, reference, ids, attention, k=1)
    names = FeatureLayout(1).names
    pair = [n for n, name in enumerate(names) if "tail" in name and "logit" in name]
    expected = [[-65504, 0]] * int(mask.sum())
    np.testing.assert_array_equal(found[mask][:, pair], expected)


def test_log_probabilities_ignore_offsets():
    target, reference, ids, attention = draw(0, False)
    plain, _ = lt_mia_features(target, reference, ids, attention, k=3)
    moved, _ = lt_mia_features(target + 2, reference, ids, attention, k=3)
    assert np.abs(plain - moved).max() > 0.5
    options = {"k": 3, "log_probabilities": True}
    plain, _ = lt_mia_features(target, reference, ids, attention, **options)
    moved, _ = lt_mia_features(target + 2, reference, ids, attention, **options)
    np.testing.assert_allclose(plain, moved, atol=1e-5)
    normalized = [
        np.apply_along_axis(oracle_features.log_softmax, -1, x)
        for x in (target, reference)
    ]
    expected, _ = oracle_features.lt_mia_features(*normalized, ids, attention, 3)
    np.testing.assert_allclose(plain, expected, atol=3e-5)


def test_jit_vmap_and_host():
    inputs = draw(1, False)
    features, mask = lt_mia_features(*inputs, k=3)
    one = jax.vmap(lambda *x: lt_mia_features(*(y[None] for y in x), k=3)[0][0])
    np.testing.assert_allclose(one(*inputs), features, atol=1e-6)
    stats = jax.tree.map(np.asarray, token_statistics(*inputs, k=3))
    on_host, host_mask = assemble(stats)
    assert isinstance(on_host, np.ndarray)
    assert on_host.dtype == np.float32
    np.testing.assert_array_equal(mask, host_mask)
    np.testing.assert_allclose(features, on_host, atol=1e-5)


def test_codec_is_exact():
    layout = FeatureLayout(4)
    features, _ = lt_mia_features(*draw(2, True), k=4)
    features = np.asarray(features)
    packed = layout.pack(features)
    assert packed.shape[-1] == layout.packed_width
    np.testing.assert_array_equal(
        layout.unpack(packed), features[..., : layout.loss.start]
    )
    stats = token_statistics(*draw(2, True), k=4)
    np.testing.assert_array_equal(packed, stats.columns)


def test_layout_of_154():
    layout = FeatureLayout()
    assert (layout.width, layout.packed_width) == (154, 103)
    assert len(set(layout.names)) == 154
    blocks = [layout.truth, layout.head, layout.tail, layout.loss, layout.text]
    assert [b.start for b in blocks] == [0, 4, 84, 144, 147]
    assert [b.stop for b in blocks] == [4, 84, 144, 147, 154]
    assert (layout._codec[1] == 1).sum() == (layout._codec[1] == -1).sum() == 41
    assert layout.names[4 + 4 * 19 + 3] == "head[19].reverse_target_rank"
    assert layout.names[84 + 3 * 7] == "tail[7].target_logit"
    with pytest.raises(InputError, match="k is 0"):
        FeatureLayout(0)


def test_statistics_without_columns_are_refused():
    with pytest.raises(InputError, match="no LT-MIA columns"):
        assemble(token_statistics(*draw(0, False), k=0))
