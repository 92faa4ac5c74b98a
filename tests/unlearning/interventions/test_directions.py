import jax.numpy as jnp
import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.unlearning.interventions import directions as fit
from lt_mia_jax.unlearning.interventions.edits import InputAware, Projection
from lt_mia_jax.unlearning.interventions.gates import gate_weights, masked_mean

D = 12


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_padding_is_left_out():
    stream = numbers(3, 4, D).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    broken = np.where(mask[..., None], stream, np.nan)
    expected = [stream[b, t] for b, t in np.ndindex(3, 4) if mask[b, t]]
    found = fit.token_rows(broken, mask)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64
    means = masked_mean(jnp.asarray(broken), mask)
    np.testing.assert_allclose(means[0], np.mean(expected[:2], axis=0), rtol=1e-5)
    np.testing.assert_array_equal(means[2], 0)


def blobs(count, each=15):
    centers = 3 * numbers(count, D, seed=1)
    points = np.concatenate([c + 0.05 * numbers(each, D, seed=2) for c in centers])
    return points, np.repeat(np.arange(count), each)


@pytest.mark.parametrize("count", [2, 5])
def test_the_number_of_topics_is_found(count):
    points, truth = blobs(count)
    found = fit.cluster(points, counts=range(2, 9))
    assert len(found.centroids) == count
    assert found.silhouette > 0.9
    for number in range(count):
        own = truth[found.labels == number]
        assert len(set(own)) == 1
        assert len(own) == 15
        np.testing.assert_allclose(
            found.centroids[number], points[truth == own[0]].mean(axis=0), rtol=1e-5
        )
    again = fit.cluster(points, counts=range(2, 9))
    np.testing.assert_array_equal(again.labels, found.labels)


@pytest.mark.parametrize("points", [np.ones((1, D)), np.ones((2, D)), np.ones((9, D))])
def test_texts_without_topics_are_one_cluster(points):
    found = fit.cluster(points)
    np.testing.assert_allclose(found.centroids, np.ones((1, D)))
    np.testing.assert_array_equal(found.labels, 0)
    assert np.isnan(found.silhouette)


def test_few_different_texts_are_no_more_clusters():
    points = np.repeat(numbers(3, D), 4, axis=0)
    assert len(fit.cluster(points, counts=range(2, 21)).centroids) == 3


def test_vectors_of_clusters():
    forget, retain = 2 + numbers(9, D), 1 + numbers(7, D, seed=1)
    labels = np.array([0, 1, 1, 0, 2, 2, 1, 0, 0])
    found = fit.cluster_vectors(forget, labels, retain)
    kept = sum(retain) / len(retain)
    for k, vector in enumerate(found):
        own = [row for row, label in zip(forget, labels, strict=True) if label == k]
        mean = sum(own) / len(own)
        expected = mean - kept * (mean @ kept) / (kept @ kept + 1e-6)
        expected = expected / np.linalg.norm(expected)
        sizes = [np.mean([np.linalg.norm(h) for h in rows]) for rows in (own, retain)]
        np.testing.assert_allclose(vector, np.mean(sizes) * expected, rtol=1e-4)
        assert abs(vector @ kept) < 1e-3


def test_clusters_without_a_vector_are_refused():
    retain = 1 + numbers(7, D)
    forget = np.stack([3 * retain.mean(axis=0), numbers(D, seed=3)])
    with pytest.raises(InputError, match=r"0 points where.*; 1 has no texts"):
        fit.cluster_vectors(forget, np.array([0, 2]), retain)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 1.0])
def test_the_gate_opens_for_no_more_retained_prompts_than_allowed(rate):
    similarity = np.tanh(numbers(40, 3)).astype(np.float32)
    threshold = fit.threshold_for_rate(similarity, rate)

    def share(threshold):
        opened = (gate_weights(jnp.asarray(similarity), threshold) > 0).any(axis=1)
        return float(opened.mean())

    assert share(threshold) == pytest.approx(rate)
    if rate < 1:
        assert share(threshold - 1e-6) > rate + 1e-6
    # Ties at the threshold stay out.
    assert fit.threshold_for_rate(np.full((10, 1), 0.5), 0.3) == 0.5


def test_the_gate_between_forgotten_and_retained_prompts():
    forget, retain = np.array([[0.9], [0.6], [0.8]]), np.array([[0.1], [0.3], [0.7]])
    cheap = fit.threshold_for_recall(forget, retain, penalty=0.5)
    dear = fit.threshold_for_recall(forget, retain, penalty=2.0)
    assert cheap == pytest.approx(0.45)  # All three for one third of the retained.
    assert dear == pytest.approx(0.75)  # Two of three, and no retained one.
    for penalty, found in ((0.5, cheap), (2.0, dear)):
        value = {
            t: (forget > t).mean() - penalty * (retain > t).mean()
            for t in (*np.linspace(-1, 1, 401), found)
        }
        assert value[found] == pytest.approx(max(value.values()))


def separate(rank, forget=20, retain=40):
    """Retained activations in a subspace; forgotten ones there and elsewhere."""
    basis = np.linalg.qr(numbers(D, D, seed=8))[0].T
    kept = numbers(retain, rank, seed=1) @ basis[:rank]
    mixed = numbers(forget, rank, seed=2) @ basis[:rank]
    own = (2 + numbers(forget, D - rank, seed=3)) @ basis[rank:]
    return basis, mixed + own, kept


def test_the_erasure_factor_solves_the_ridge_problem():
    """Against the D x D pseudo-inverse of the paper, on data of full rank."""
    _, forget, _ = separate(8)
    retain = numbers(40, D, seed=5)
    values, vectors = np.linalg.eigh(retain.T @ retain)
    order = np.argsort(values)[: round(0.3 * D)]
    projector = sum(np.outer(vectors[:, i], vectors[:, i]) for i in order)
    x = forget @ projector
    inverse = np.linalg.pinv(x.T @ x + 0.1 * projector.T @ projector, rcond=1e-10)
    direction = numbers(D, seed=6)
    ones = np.ones((len(forget), 1))
    matrix = projector @ inverse @ x.T @ (ones @ direction[None])

    factor = fit.erasure_factor(forget, fit.null_basis(retain, 0.3), 0.1)
    np.testing.assert_allclose(np.outer(factor, direction), matrix, atol=1e-5)
    # h W for a prompt is what the intervention adds to each of its tokens.
    stream = numbers(2, 3, D).astype(np.float32)
    edit = InputAware(factor, direction.astype(np.float32), np.array([3, 2]))
    found = edit(jnp.asarray(stream), jnp.int32(0))
    for b, t, last in ((0, 0, 2), (0, 2, 2), (1, 1, 1)):
        expected = stream[b, t] + stream[b, last] @ matrix
        np.testing.assert_allclose(found[b, t], expected, rtol=1e-4, atol=1e-4)


def test_retained_activations_ask_for_nothing():
    _, forget, retain = separate(8)
    factor = fit.erasure_factor(forget, fit.null_basis(retain, 0.3), 0.1)
    scale = np.linalg.norm(factor)
    # Anything in their span, not only what was seen.
    unseen = numbers(10, len(retain), seed=9) @ retain
    sizes = np.linalg.norm(unseen, axis=1) * scale
    assert (np.abs(unseen @ factor) < 1e-6 * sizes).all()
    assert np.abs(forget @ factor).mean() > 0.5


@pytest.mark.parametrize("rank", [2, 3])
def test_forget_rows_spare_the_retained_subspace(rank):
    basis, forget, retain = separate(rank)
    found = np.float64(fit.forget_rows(forget, retain, count=2, retain_rank=rank))
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(found @ basis[:rank].T, 0, atol=1e-5)
    edit = Projection(found.astype(np.float32))
    kept = retain[None].astype(np.float32)
    np.testing.assert_allclose(edit(jnp.asarray(kept), jnp.int32(0)), kept, atol=1e-5)

    # The main directions of the rest: no two others hold more of it.
    outside = forget @ basis[rank:].T
    best = (np.linalg.svd(outside, compute_uv=False)[:2] ** 2).sum()
    assert np.square(forget @ found.T).sum() == pytest.approx(best, rel=1e-5)


def test_a_quarter_of_the_width_is_spared():
    _, forget, retain = separate(3)
    np.testing.assert_array_equal(
        fit.forget_rows(forget, retain, count=1),
        fit.forget_rows(forget, retain, count=1, retain_rank=D // 4),
    )


def test_mean_difference():
    towards, away = numbers(5, D), numbers(3, D, seed=1)
    found = fit.mean_difference(towards, away)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, sum(towards) / 5 - sum(away) / 3, rtol=1e-5, atol=1e-6
    )


def test_bad_activations_and_settings_are_refused():
    _, forget, retain = separate(3)
    broken = forget.copy()
    broken[[2, 4], 0] = np.inf
    with pytest.raises(InputError, match=r"forget has 2 rows .* the first is 2"):
        fit.forget_rows(broken, retain, count=1)
    with pytest.raises(InputError, match="retain is empty"):
        fit.null_basis(np.zeros((0, D)))
    with pytest.raises(InputError, match=r"share = 0.01 of 12 directions is 0"):
        fit.null_basis(retain, 0.01)
    with pytest.raises(InputError, match="ridge = 0"):
        fit.erasure_factor(forget, fit.null_basis(retain), 0.0)
    with pytest.raises(InputError, match="rate = 2"):
        fit.threshold_for_rate(retain, 2.0)
    with pytest.raises(InputError, match="have 2 directions outside of 10 retained"):
        fit.forget_rows(forget, numbers(40, D), count=3, retain_rank=10)
    with pytest.raises(InputError, match="have 0 directions outside"):
        fit.forget_rows(retain, retain, count=1, retain_rank=3)
