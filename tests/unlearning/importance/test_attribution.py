"""Scores of parameters and of texts, thresholds and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from model_zoo import LanguageModel, configs
from oracle_transforms import flat, kth_largest
from quick_compile import jit

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.training.fisher import diagonal_fisher
from lt_mia_jax.training.threshold import leaf_count, threshold_bits, top_share_mask
from lt_mia_jax.unlearning.importance import attribution
from lt_mia_jax.unlearning.importance.attribution import (
    attribution_scores,
    forgetting_confidence,
    guard_weights,
    row_axis,
    row_mask,
    saliency,
    weighted_squared_norms,
)

TEXTS, INPUTS, OUTPUTS = 6, 4, 3


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(INPUTS, OUTPUTS)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=OUTPUTS), jnp.float32),
    }


def make_batch(seed=1, texts=TEXTS):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(texts, INPUTS)).astype(np.float32),
        "y": rng.integers(OUTPUTS, size=texts),
        "weight": np.ones(texts, np.float32),
    }


def per_example(params, batch):
    """Cross-entropy of each text under a small non-linear model."""
    logits = jnp.tanh(batch["x"] @ params["w"]) + params["b"][None]
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]


def mean_gradient(params, batch):
    return jax.grad(lambda p: per_example(p, batch).mean())(params)


def gradients(params, batch):
    """One row a text: its gradient by the definition, in closed form and float64."""
    x, y = np.float64(batch["x"]), batch["y"]
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    rows = []
    for i in range(len(x)):
        hidden = np.tanh(x[i] @ w)
        p = np.exp(hidden + b) / np.exp(hidden + b).sum()
        p[y[i]] -= 1
        dw = np.outer(x[i], p * (1 - hidden**2))
        # Leaves in the order of jax.tree: b, then w.
        rows.append(np.concatenate([p, dw.ravel()]))
    return np.stack(rows)


# ---------------------------------------------------------------- thresholds


def scores_with_ties(seed):
    rng = np.random.default_rng(seed)
    rough = rng.exponential(size=(8, 16)).round(1)
    return {
        "a": jnp.asarray(rough, jnp.float32),
        "b": [
            jnp.asarray(rng.exponential(size=(4, 8, 4)) * 1e-30, jnp.float32),
            jnp.zeros(12),
            jnp.asarray([1e-42, 3e38, jnp.inf, 0.0], jnp.float32),
        ],
    }


def threshold(scores, kept):
    return jax.lax.bitcast_convert_type(threshold_bits(scores, kept), jnp.float32)


@pytest.mark.parametrize("devices", [1, 4])
def test_the_threshold_is_the_sorted_order_statistic(devices):
    scores = scores_with_ties(0)
    if devices == 4:
        mesh = make_mesh(1, 4)
        specs = {"a": P("fsdp"), "b": [P(None, "fsdp"), P("fsdp"), P()]}
        place = jax.tree.map(
            lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P)
        )
        scores = jax.device_put(scores, place)
    n = flat(scores).size
    for kept in (1, 2, 3, n // 3, n // 2, n - 20, n):
        found = threshold(scores, kept)
        assert found.dtype == jnp.float32
        # Bits: the host's float32 keeps subnormal numbers apart, and so must we.
        expected = np.float32(kth_largest(scores, kept))
        assert np.asarray(found).view(np.int32) == expected.view(np.int32)
    with pytest.raises(ValueError, match="kept"):
        threshold(scores, n + 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_a_share_keeps_its_largest_and_all_ties(share):
    scores = scores_with_ties(1)
    values = flat(scores)
    kept = round(share * values.size)
    mask = top_share_mask(scores, share)
    assert jax.tree.structure(mask) == jax.tree.structure(scores)
    expected = (
        values >= kth_largest(scores, kept) if kept else np.zeros(values.size, bool)
    )
    np.testing.assert_array_equal(flat(mask).astype(bool), expected)
    ties = expected.sum() - kept
    assert ties >= 0
    if share == 0.3:
        assert ties > 0
    with pytest.raises(ValueError, match="share"):
        top_share_mask(scores, 1.5)


def test_the_count_of_the_kept_may_have_two_digits():
    rng = np.random.default_rng(0)
    scores = {"x": jnp.asarray(rng.exponential(size=(300, 301)), jnp.float32)}
    for kept in (2**16 - 1, 2**16, 2**16 + 1, 300 * 301 - 1):
        found = threshold(scores, kept)
        assert float(found) == kth_largest(scores, kept)


def test_half_precision_scores_and_signs():
    scores = {"x": jnp.asarray([-3.0, 2.0, 1.0, -0.0], jnp.bfloat16)}
    mask = top_share_mask(scores, 0.5)
    assert mask["x"].tolist() == [True, True, False, False]


def test_counts_are_exact_beyond_one_digit():
    rng = np.random.default_rng(0)
    for shape in ((3, 70000), (70000, 3), (2, 300, 300)):
        mask = rng.random(shape) < 0.9
        count = int(mask.sum())
        assert count > 2**16
        for limit in (2**31, 1):  # in one sum, and axis by axis
            high, low = jit(leaf_count, static_argnums=1)(mask, limit)
            assert int(high) * 2**16 + int(low) == count
            assert int(low) < 2**16


# ---------------------------------------------------------------- rows


def test_rows_are_output_neurons_above_one_percentile():
    rng = np.random.default_rng(0)
    g = {
        "embedding": {"tokens": rng.normal(size=(7, 4))},
        "periods": {
            "slot_0": {
                "up": {
                    "kernel": rng.normal(size=(2, 4, 5)),
                    "bias": rng.normal(size=(2, 5)),
                }
            }
        },
    }
    g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
    up = g["periods"]["slot_0"]["up"]
    norms = {
        "tokens": np.linalg.norm(np.float64(g["embedding"]["tokens"]), axis=1),
        "kernel": np.linalg.norm(np.float64(up["kernel"]), axis=1),
        "bias": np.abs(np.float64(up["bias"])),
    }
    every = np.concatenate([x.ravel() for x in norms.values()])
    for percentile in (0.0, 80.0, 90.0, 100.0):
        limit = np.percentile(every, percentile)
        mask = row_mask(g, percentile)
        found = mask["periods"]["slot_0"]["up"]
        assert mask["embedding"]["tokens"].shape == (7, 1)
        assert found["kernel"].shape == (2, 1, 5)
        # Float32 norms may lie an ulp below the percentile that is one of them.
        limit *= 1 - 1e-6
        np.testing.assert_array_equal(
            mask["embedding"]["tokens"][:, 0], norms["tokens"] >= limit
        )
        np.testing.assert_array_equal(found["kernel"][:, 0], norms["kernel"] >= limit)
        np.testing.assert_array_equal(found["bias"], norms["bias"] >= limit)
    with pytest.raises(ValueError, match="percentile"):
        row_mask(g, 101.0)


def test_every_leaf_of_every_family_has_rows():
    for name in ("gpt2", "rwkv-preset", "griffin-preset", "mamba-preset"):
        shapes = LanguageModel(configs()[name]).shapes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            axis = row_axis(jax.tree_util.keystr(path, simple=True, separator="/"))
            assert axis is None or leaf.ndim >= 2, path
    assert row_axis("periods/slot_0/mixer/query/kernel") == -2
    assert row_axis("periods/slot_0/mixer/log_decay") == -1
    assert row_axis("final_norm/scale") is None


# ---------------------------------------------------------------- parameters


def test_saliency_is_the_magnitude_of_the_sum():
    params = make_params()
    batches = [make_batch(seed) for seed in (1, 2, 3)]
    found = saliency(mean_gradient, params, batches)
    rows = [gradients(params, batch).mean(axis=0) for batch in batches]
    np.testing.assert_allclose(flat(found), np.abs(sum(rows)), rtol=1e-4, atol=1e-6)
    assert np.abs(flat(found) - sum(map(np.abs, rows))).max() > 1e-2
    half = saliency(
        lambda p, b: jax.tree.map(
            lambda x: x.astype(jnp.bfloat16), mean_gradient(p, b)
        ),
        params,
        batches,
    )
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(half))
    with pytest.raises(ValueError, match="at least one batch"):
        saliency(mean_gradient, params, [])


def test_fisher_is_the_mean_of_squared_gradients_of_texts():
    params = make_params()
    batches = [make_batch(1), make_batch(2)]
    # Rows that only fill up the second batch, with values that are not numbers.
    batches[1]["weight"][4:] = 0
    batches[1]["x"][4:] = np.nan
    found = diagonal_fisher(
        per_example, params, batches, row_weight=lambda batch: batch["weight"]
    )
    rows = np.concatenate([gradients(params, b) for b in batches])[: TEXTS + 4]
    np.testing.assert_allclose(flat(found), (rows**2).mean(axis=0), rtol=1e-4)
    whole = diagonal_fisher(per_example, params, batches[:1])
    rows = gradients(params, batches[0])
    np.testing.assert_allclose(flat(whole), (rows**2).mean(axis=0), rtol=1e-4)
    # The square of the batch's gradient is another number.
    assert not np.allclose(flat(whole), rows.mean(axis=0) ** 2, rtol=0.1)
    with pytest.raises(ValueError, match="at least one batch"):
        diagonal_fisher(per_example, params, [])


# ---------------------------------------------------------------- texts


def test_one_forward_pass_gives_the_product_of_every_gradient():
    params, batch = make_params(), make_batch()
    direction = make_params(7)
    found = attribution_scores(per_example, params, batch, direction)
    expected = gradients(params, batch) @ flat(direction)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    rows = jax.jacrev(per_example)(params, batch)
    explicit = sum(
        (np.float64(r) * np.float64(d)[None]).reshape(TEXTS, -1).sum(axis=1)
        for r, d in zip(jax.tree.leaves(rows), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(found, explicit, rtol=1e-5, atol=1e-6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), direction)
    rough = attribution_scores(per_example, params, batch, half)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, expected, rtol=0.05, atol=0.05)


def test_the_estimate_of_squared_norms_is_within_three_errors():
    params, batch = make_params(), make_batch()
    weight = jax.tree.map(jnp.square, make_params(3))
    expected = gradients(params, batch) ** 2 @ flat(weight)
    run = jit(
        lambda key: weighted_squared_norms(
            per_example, params, batch, weight, key=key, probes=512
        )
    )
    found, error = run(jax.random.key(0))
    assert found.shape == (TEXTS,)
    assert (np.abs(found - expected) < 3 * error).all()
    # The error itself is right: it shrinks with the root of the number of probes.
    assert (np.asarray(error) < 0.15 * expected).all()
    assert (np.asarray(error) > 0).all()
    other, _ = run(jax.random.key(1))
    assert (np.asarray(found) != np.asarray(other)).any()
    with pytest.raises(ValueError, match="probes"):
        weighted_squared_norms(
            per_example, params, batch, weight, key=jax.random.key(0), probes=1
        )


def test_forgetting_confidence_is_the_expanded_square():
    params, optimum, batch = make_params(), make_params(2), make_batch()
    fisher = jax.tree.map(jnp.square, make_params(3))
    found = forgetting_confidence(
        per_example,
        params,
        batch,
        optimum=optimum,
        fisher=fisher,
        rate=0.1,
        key=jax.random.key(0),
        probes=256,
    )
    away = flat(params) - 0.1 * gradients(params, batch) - flat(optimum)
    expected = 0.5 * away**2 @ flat(fisher)
    # Only the square is estimated, and it is small.
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert (np.argsort(found) == np.argsort(expected)).all()


def test_weights_fall_with_the_score_and_have_mean_one():
    scores = np.array([0.3, -1.0, 2.0, 0.3, 5.0], np.float32)
    for temperature in (None, 0.5, 2.0):
        tau = scores.astype(np.float64).std() if temperature is None else temperature
        raw = np.exp(-scores.astype(np.float64) / tau)
        found = jit(guard_weights)(jnp.asarray(scores), temperature)
        np.testing.assert_allclose(found, 5 * raw / raw.sum(), rtol=1e-5)
        np.testing.assert_allclose(found.mean(), 1.0, rtol=1e-6)
        assert (np.diff(np.asarray(found)[np.argsort(scores)]) <= 1e-6).all()
    np.testing.assert_allclose(guard_weights(jnp.full(4, 7.0)), 1.0)
    # Large scores neither overflow nor underflow to nothing.
    found = guard_weights(jnp.asarray([1e6, 1e6 + 1.0]))
    np.testing.assert_allclose(found.sum(), 2.0, rtol=1e-6)


def test_saliency_masks_compose_with_the_rest():
    """The SalUn recipe end to end: accumulate, threshold, mask."""
    params = make_params()
    scores = attribution.saliency(mean_gradient, params, [make_batch(1), make_batch(2)])
    mask = top_share_mask(scores, 0.5)
    assert sum(int(m.sum()) for m in jax.tree.leaves(mask)) == round(
        0.5 * flat(params).size
    )
