"""Projections of the executed step, against float64 solutions."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_transforms import AdamW, flat, flat_rows, nearest_feasible, without_span
from quick_compile import jit, run
from small_trees import tree

from lt_mia_jax.training.transforms.products import solve
from lt_mia_jax.unlearning.transforms import (
    combine_forget_retain,
    fisher_masked,
    freeze,
    monitored,
    project_realized_update,
    saliency_masked,
    second_moment,
)
from lt_mia_jax.unlearning.transforms.realized import active_set


def stacked(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


RATE, DECAY = 1e-2, 0.1


OPTIMIZER = optax.adamw(RATE, weight_decay=DECAY)


@lru_cache
def warm():
    """AdamW alone at its sixth step, and its state before; checked by the book."""
    params = tree(10)
    state, update = OPTIMIZER.init(params), jit(OPTIMIZER.update)
    oracle = AdamW(flat(params).size, RATE, decay=DECAY)
    for seed in range(20, 25):
        g = tree(seed, scale=0.3)
        _, state = update(g, state, params)
        oracle.step(flat(g), flat(params))
    g = tree(30)
    step, _ = update(g, state, params)
    expected = oracle.step(flat(g), flat(params))
    np.testing.assert_allclose(flat(step), expected, rtol=1e-3, atol=1e-7)
    return params, g, state, step, oracle.denominator()


def opposing(step, size):
    """Retain gradients whose loss the step would raise."""
    found = []
    for seed in range(40, 40 + size):
        r = tree(seed)
        found.append(
            jax.tree.map(partial(jnp.multiply, np.sign(flat(r) @ flat(step))), r)
        )
    return stacked(*found)


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("form", ["inequality", "equality"])
def test_the_executed_step_does_not_raise_the_retain_loss(size, form):
    params, g, prior, step, metric = warm()
    tx = project_realized_update(OPTIMIZER, size=size, form=form)
    state = tx.init(params)._replace(inner=prior)
    retain = opposing(step, size)
    u, new = run(tx, g, state, params, retain_grads=retain)
    rows, found, start = flat_rows(retain), flat(u), flat(step)
    before = rows @ start
    assert (before > 0).all()
    tolerance = 1e-5 * before.max()
    assert (rows @ found <= tolerance).all()
    if form == "equality":
        assert (np.abs(rows @ found) <= tolerance).all()
        expected = without_span(start * metric, rows, 1 / metric) / metric
    else:
        expected, multipliers = nearest_feasible(start, rows, metric)
        np.testing.assert_allclose(
            monitored(new)["realized_update_multiplier"], multipliers.max(), rtol=1e-3
        )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(start).max())
    cosines = before / np.linalg.norm(rows, axis=1) / np.linalg.norm(start)
    np.testing.assert_allclose(
        monitored(new)["realized_update_cosine"], cosines.max(), rtol=1e-4
    )
    # No other feasible point is nearer in the optimizer's metric.
    rng = np.random.default_rng(0)
    nearest, inverse = metric @ (found - start) ** 2, np.linalg.pinv(rows)
    for _ in range(200):
        size_of_move = 10.0 ** rng.uniform(-3, 0) * np.abs(found).mean()
        other = found + size_of_move * rng.normal(size=found.size)
        excess = rows @ other
        if form == "inequality":
            excess = np.maximum(excess, 0.0)
        other = other - inverse @ excess
        assert (rows @ other <= 1e-9).all()
        assert metric @ (other - start) ** 2 >= nearest * (1 - 1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_that_lowers_the_retain_loss_comes_back_bit_for_bit(size):
    params, g, prior, step, _ = warm()
    tx = project_realized_update(OPTIMIZER, size=size)
    state = tx.init(params)._replace(inner=prior)
    retain = jax.tree.map(jnp.negative, opposing(step, size))
    u, new = run(tx, g, state, params, retain_grads=retain)
    np.testing.assert_array_equal(flat(u), flat(step))
    assert monitored(new)["realized_update_multiplier"] == 0
    assert monitored(new)["realized_update_cosine"] < 0


def test_without_a_second_moment_the_metric_is_euclidean():
    params, r = tree(10), tree(1)
    tx = project_realized_update(optax.sgd(0.1, momentum=0.9), form="equality")
    update, state = jit(tx.update), tx.init(params)
    for seed in (2, 3):
        u, state = update(tree(seed), state, params, retain_grads=r)
    expected = -0.1 * (0.9 * flat(tree(2)) + flat(tree(3)))
    rows = flat(r)[None]
    np.testing.assert_allclose(
        flat(u), without_span(expected, rows, np.ones(rows.size)), atol=1e-6
    )


@pytest.mark.parametrize("size", [2, 5, 9])
def test_active_sets_agree_with_non_negative_least_squares(size):
    rng = np.random.default_rng(size)
    solved = jit(active_set)
    for case in range(12):
        rows = rng.normal(size=(size, 30)) * 10.0 ** rng.integers(-2, 3, (size, 1))
        if case % 3 == 0:
            rows[1] = 2 * rows[0]  # singular
        step = rng.normal(size=30)
        expected, _ = nearest_feasible(step, rows, np.ones(30))
        multipliers = np.asarray(
            solved(jnp.float32(rows @ rows.T), jnp.float32(rows @ step)), np.float64
        )
        assert (multipliers >= 0).all()
        np.testing.assert_allclose(step - rows.T @ multipliers, expected, atol=2e-4)


def test_many_gradients_in_few_directions():
    """Most sets of active constraints are singular systems then."""
    rng = np.random.default_rng(0)
    solved = jit(active_set)
    for case in range(20):
        rank = 1 + case % 3
        rows = rng.normal(size=(9, rank)) @ rng.normal(size=(rank, 30))
        step = rng.normal(size=30)
        expected, _ = nearest_feasible(step, rows, np.ones(30))
        multipliers = np.asarray(
            solved(jnp.float32(rows @ rows.T), jnp.float32(rows @ step)), np.float64
        )
        found = step - rows.T @ multipliers
        np.testing.assert_allclose(found, expected, atol=1e-3)
        # Nearly equal ones: the point is another, the promise holds.
        rows = rows + 1e-3 * rng.normal(size=rows.shape)
        multipliers = np.asarray(
            solved(jnp.float32(rows @ rows.T), jnp.float32(rows @ step)), np.float64
        )
        excess = rows @ (step - rows.T @ multipliers)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(step)
        assert (excess < 2e-4 * lengths).all()


def test_a_gram_matrix_that_rounding_made_indefinite():
    k = jnp.array([[1.0, 1 + 1e-6], [1 + 1e-6, 1.0]])
    found = jit(solve, static_argnums=2)(k, jnp.array([1.0, 1 + 1e-7]), 1e-6)
    np.testing.assert_allclose(found, 0.5, atol=0.2)


def test_damping_leaves_no_bias_between_nearly_opposed_gradients():
    """A narrow cone needs large multipliers, of which damping would keep a share."""
    rng = np.random.default_rng(0)
    first, across = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    rows = np.stack([first, -first + 0.05 * across])
    step = 0.1 * first + across
    k, b = rows @ rows.T, rows @ step
    expected = np.linalg.solve(k, b)
    assert (expected > 10).all()
    for found in (
        jit(solve, static_argnums=2)(jnp.float32(k), jnp.float32(b), 1e-6),
        jit(active_set)(jnp.float32(k), jnp.float32(b)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_gradient_that_is_not_a_number_stays_visible():
    params = tree(10)
    bad = jax.tree.map(lambda x: x * jnp.nan, stacked(tree(1), tree(2)))
    tx = project_realized_update(optax.sgd(0.1), size=2)
    u, _ = run(tx, tree(0), tx.init(params), params, retain_grads=bad)
    assert np.isnan(flat(u)).all()


def test_the_inner_combination_gets_the_mean_retain_gradient():
    params, retain = tree(10), tree(1, 3)
    inner = optax.chain(combine_forget_retain(), optax.sgd(0.1))
    tx = project_realized_update(inner, size=3)
    g = tree(0)
    u, _ = run(tx, g, tx.init(params), params, retain_grads=retain)
    rows = flat_rows(retain)
    step = -0.1 * (flat(g) + rows.mean(axis=0))
    expected, _ = nearest_feasible(step, rows, np.ones(step.size))
    np.testing.assert_allclose(flat(u), expected, atol=1e-5)


@pytest.mark.parametrize("cut", ["mask", "freeze"])
def test_the_guarantee_holds_for_the_parameters_that_move(cut):
    params, r = tree(10), tree(1)
    optimizer = project_realized_update(OPTIMIZER)
    if cut == "mask":
        mask = jax.tree.map(lambda x: x > 0, tree(5))
        tx = saliency_masked(optimizer, mask)
    else:
        mask = jax.tree.map(lambda x: jnp.full(x.shape, x.ndim == 3), params)
        tx = freeze(optimizer, ["b/d"])
    update, state = jit(tx.update), tx.init(params)
    conflicts = 0
    for seed in range(6):
        u, state = update(tree(seed), state, params, retain_grads=r)
        product = flat(r) @ flat(u)
        assert product <= 1e-6 * np.linalg.norm(flat(r)) * np.linalg.norm(flat(u))
        assert not flat(u)[~flat(mask).astype(bool)].any()
        conflicts += float(monitored(state)["realized_update_multiplier"]) > 0
    assert 0 < conflicts


def test_what_a_realized_projection_refuses():
    params, r = tree(10), tree(1)
    with pytest.raises(ValueError, match="expected 1 to 9"):
        project_realized_update(optax.sgd(0.1), size=10)
    tx = project_realized_update(optax.sgd(0.1), size=2)
    with pytest.raises(ValueError, match=r"other shapes; a: .*expected"):
        tx.update(tree(0), tx.init(params), params, retain_grads=r)
    two = optax.chain(optax.scale_by_adam(), optax.scale_by_adam())
    tx = project_realized_update(two)
    with pytest.raises(ValueError, match="2 second moments"):
        tx.update(tree(0), tx.init(params), params, retain_grads=r)
    mask = jax.tree.map(lambda x: x > 0, params)
    for inside in (
        saliency_masked(optax.sgd(0.1), mask),
        fisher_masked(optax.sgd(0.1), quantile=0.5),
    ):
        with pytest.raises(ValueError, match="around it"):
            project_realized_update(optax.chain(inside)).init(params)
    tx = project_realized_update(freeze(optax.adam(0.1), ["a"]))
    with pytest.raises(ValueError, match="nu is another tree"):
        tx.update(tree(0), tx.init(params), params, retain_grads=r)


def test_second_moments_are_found_and_corrected():
    params, g = tree(10), tree(0)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e3), optax.adamw(RATE), optax.scale(1.0)
    )
    state = optimizer.init(params)
    assert not flat(second_moment(state)).any()
    _, state = optimizer.update(g, state, params)
    np.testing.assert_allclose(flat(second_moment(state)), flat(g) ** 2, rtol=1e-3)
    assert second_moment(optax.sgd(0.1, momentum=0.9).init(params)) is None
    rms = optax.scale_by_rms(decay=0.5)
    _, state = rms.update(g, rms.init(params), params)
    np.testing.assert_allclose(flat(second_moment(state)), flat(g) ** 2 / 2, rtol=1e-5)
