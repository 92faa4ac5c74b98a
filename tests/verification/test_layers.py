"""Residual streams against hand calculation; what is read of them."""

import numpy as np
import pytest

from lt_mia_jax.verification import layers
from lt_mia_jax.verification.metrics.traces import trace_accuracy


def test_streams_by_layer(subjects, splits):
    rows = splits["forget25"]
    one, other = (layers.streams(subject, rows) for subject in subjects)
    encoded = subjects[0].encode(rows)
    assert len(one.text) == encoded.label_mask.sum()
    # The embedding: token and position, of the token before each target.
    text, place = np.nonzero(encoded.label_mask)
    params = subjects[0].params["embedding"]
    expected = (
        np.asarray(params["tokens"])[encoded.input_ids[text, place - 1]]
        + np.asarray(params["positions"])[place - 1]
    )
    np.testing.assert_allclose(one.layers[0], expected, rtol=1e-5)
    assert layers.similarity(one, one) == pytest.approx([1.0, 1.0])
    assert max(layers.similarity(one, other)) < 0.999
    few = layers.streams(subjects[0], rows, tokens=7)
    np.testing.assert_array_equal(few.layers[1], one.layers[1][:7])
    plane = layers.pca_projection({"a": one, "b": other})
    assert plane["a"].shape == (len(rows), 2)
    both = np.concatenate(list(plane.values()))
    pooled = np.concatenate(
        [
            [s.layers[1][s.text == i].mean(0) for i in range(len(rows))]
            for s in (one, other)
        ]
    ).astype(np.float64)
    largest = np.sort(np.linalg.eigvalsh(np.cov(pooled.T)))[::-1][:2]
    np.testing.assert_allclose(np.cov(both.T), np.diag(largest), atol=1e-9)


def test_traces_read_the_last_token_of_each_text():
    rng = np.random.default_rng(0)

    def streams(*lengths):
        count = sum(lengths)
        return layers.Streams(
            {0: rng.normal(size=(count, 3)), 2: rng.normal(size=(count, 3))},
            np.repeat(np.arange(len(lengths)), lengths).astype(float),
        )

    before = [streams(1, 3, 2), streams(2, 1, 1)]
    after = [streams(1, 3, 2), streams(2, 1, 1)]
    ends = [[0, 3, 5], [1, 2, 3]]
    one, other = (
        np.concatenate([x.layers[2][rows] for x, rows in zip(side, ends, strict=True)])
        for side in (before, after)
    )
    found, expected = layers.trace(before, after), trace_accuracy(one, other)
    np.testing.assert_array_equal(found.right, expected.right)
    assert found.p_value == expected.p_value
    assert layers.trace(before[:1], after[:1]) is None  # fewer texts than folds


def test_the_last_layer_alone(subjects, splits):
    rows = splits["forget25"][:3]
    whole = layers.streams(subjects[0], rows)
    last = layers.streams(subjects[0], rows, last_only=True)
    assert list(last.layers) == [1]
    np.testing.assert_allclose(last.layers[1], whole.layers[1], rtol=1e-6)
