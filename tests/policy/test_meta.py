"""Iterations of Meta-RTL against NumPy, on a model whose loss is a parabola."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import jit

from lt_mia_jax.policy.meta import (
    MetaConfig,
    SourcePolicy,
    adapt_sources,
    meta_step,
    new_meta_state,
    source_rewards,
    weighted_reptile,
)

RATE, BETA, STEPS = 0.1, 0.5, 3
CENTERS = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 0.0]], np.float32)
TARGET = np.array([1.0, 0.2], np.float32)


def loss(params, batch):
    return jnp.square(params["x"] - batch).sum()


CONFIG = MetaConfig(
    loss=loss,
    inner=optax.sgd(RATE),
    policy=SourcePolicy(3, hidden=8),
    optimizer=optax.adam(3e-2),
    beta=BETA,
)
SOURCES = np.repeat(CENTERS[:, None], STEPS, axis=1)
START = {"x": jnp.array([0.3, -0.4])}


def slow_copies(x):
    found = []
    for center in CENTERS.astype(np.float64):
        own = np.asarray(x, np.float64)
        for _ in range(STEPS):
            own = own - RATE * 2 * (own - center)
        found.append(own)
    return np.array(found)


def test_copies_take_their_own_steps():
    found = jit(lambda p, b: adapt_sources(loss, CONFIG.inner, p, b))(START, SOURCES)
    np.testing.assert_allclose(found["x"], slow_copies(START["x"]), atol=1e-6)


def test_the_meta_model_moves_by_weights():
    rng = np.random.default_rng(0)
    copies = {"x": rng.normal(size=(3, 2)), "y": rng.normal(size=(3,))}
    params = {"x": rng.normal(size=2), "y": np.array(0.7)}
    weights = jnp.array([0.2, 0.7, 0.1])
    start, ends = (jax.tree.map(jnp.asarray, tree) for tree in (params, copies))
    found = weighted_reptile(start, ends, weights, BETA)
    for name, x in params.items():
        expected = x + BETA * sum(
            w * (own - x) for w, own in zip(weights.tolist(), copies[name], strict=True)
        )
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    # With all weight on one source and a whole step it is the copy.
    alone = weighted_reptile(start, ends, jnp.array([0.0, 1.0, 0.0]), 1.0)
    np.testing.assert_allclose(alone["x"], copies["x"][1], atol=1e-6)


def test_an_iteration_is_made_of_these_parts():
    state = new_meta_state(CONFIG, jax.random.key(0))
    moved, after, aux = jit(lambda p, s: meta_step(CONFIG, p, s, SOURCES, TARGET))(
        START, state
    )
    x, copies = np.asarray(START["x"], np.float64), slow_copies(START["x"])
    before = ((x - TARGET) ** 2).sum()
    rewards = [before - ((own - TARGET) ** 2).sum() for own in copies]
    np.testing.assert_allclose(aux.rewards, rewards, atol=1e-5)
    assert rewards[0] > 0 > rewards[2]  # towards the target, and away from it
    weights = np.asarray(aux.weights, np.float64)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    expected = x + BETA * (weights[:, None] * (copies - x)).sum(axis=0)
    np.testing.assert_allclose(moved["x"], expected, atol=1e-6)
    np.testing.assert_allclose(after.seen, [*weights, *rewards], atol=1e-5)
    assert float(after.learner.baseline) == pytest.approx(np.mean(rewards), rel=1e-5)


def test_the_policy_ascends_the_expected_reward():
    """Of a source drawn from it; the gradient is that of `sum_i w_i (R_i - mean)`."""
    sgd = MetaConfig(loss, CONFIG.inner, CONFIG.policy, optax.sgd(1.0))
    state = new_meta_state(sgd, jax.random.key(0))
    _, after, aux = jit(lambda p, s: meta_step(sgd, p, s, SOURCES, TARGET))(
        START, state
    )

    def expected(params):
        _, logits = sgd.policy.apply({"params": params}, state.carry, state.seen)
        return (jax.nn.softmax(logits) * (aux.rewards - aux.rewards.mean())).sum()

    gradient = jit(jax.grad(expected))(state.learner.params)
    for was, now, slope in zip(
        *map(jax.tree.leaves, (state.learner.params, after.learner.params, gradient)),
        strict=True,
    ):
        np.testing.assert_allclose(now - was, slope, atol=1e-6)


def test_the_policy_finds_the_source_that_leads_to_the_target():
    step = jit(lambda p, s: meta_step(CONFIG, p, s, SOURCES, TARGET))
    params, state = START, new_meta_state(CONFIG, jax.random.key(1))
    for _ in range(80):
        params, state, aux = step(params, state)
        params = START  # the same question each time
    assert float(aux.weights[0]) > 0.8
    # The state of the LSTM goes on from iteration to iteration.
    still, *_ = jax.tree.leaves(new_meta_state(CONFIG, jax.random.key(1)).carry)
    assert not np.array_equal(still, jax.tree.leaves(state.carry)[0])


def test_rewards_compare_with_the_meta_model():
    found = source_rewards(jnp.array(1.0), jnp.array([0.4, 1.0, 3.0]))
    np.testing.assert_allclose(found, [0.6, 0.0, -2.0], atol=1e-6)
