"""Group-relative policy optimization against its definition, and its two limits."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_unlearning as oracle
import pytest
from objective_zoo import apply_fn, numpy_case

from lt_mia_jax.policy.objective import group_advantages
from lt_mia_jax.unlearning.objectives.policy import grpo

ADVANTAGES = np.array([1.5, -0.7, 3.0, -1.2, 0.4, 1.0], np.float32)


def case():
    params, batch = numpy_case()
    logits = np.float64(params["logits"])
    # Answers were written by a model a little away: some ratios reach the clip.
    rng = np.random.default_rng(3)
    written = logits + 0.3 * rng.normal(size=logits.shape)
    before = np.zeros(batch.input_ids.shape)
    for b, row in enumerate(oracle.predictions(batch, np.ones(6))):
        for t, y in row:
            before[b, t] = -oracle.log_softmax(written[b, t])[y]
    return params, batch, before.astype(np.float32)


def defined(logits, batch, before, epsilon, beta):
    """Text by text, token by token."""
    found, clipped = [], 0
    for b, row in enumerate(oracle.predictions(batch)):
        total, gain = 0.0, float(ADVANTAGES[b])
        for t, y in row:
            log_p = oracle.log_softmax(logits[b, t])[y]
            r = np.exp(log_p + float(before[b, t]))
            low = min(max(r, 1 - epsilon), 1 + epsilon)
            clipped += low * gain < r * gain
            q = np.exp(-float(batch.reference_nll[b, t]) - log_p)
            total += min(r * gain, low * gain) - beta * (q - np.log(q) - 1)
        found.append((-total / len(row), 1) if row else (0.0, 0))
    return found, clipped


@pytest.mark.parametrize(("epsilon", "beta"), [(0.2, 0.04), (0.05, 0.0), (0.2, 1.0)])
def test_value_and_gradient_equal_the_definition(epsilon, beta):
    params, batch, before = case()

    def call(logits):
        return grpo(
            params | {"logits": logits},
            jax.tree.map(jnp.asarray, batch),
            apply_fn=apply_fn,
            advantages=jnp.asarray(ADVANTAGES),
            behaviour_nll=jnp.asarray(before),
            epsilon=epsilon,
            beta=beta,
        )

    point = np.float64(params["logits"])
    terms, clipped = defined(point, batch, before, epsilon, beta)
    assert clipped > 0
    (value, info), slope = jax.value_and_grad(call, has_aux=True)(
        jnp.asarray(params["logits"])
    )
    np.testing.assert_allclose(value, oracle.value(terms, batch.weight), rtol=1e-5)
    np.testing.assert_allclose(
        info.per_example, [term for term, _ in terms], rtol=1e-5, atol=1e-6
    )
    expected = oracle.gradient(
        lambda z: oracle.value(
            defined(z, batch, before, epsilon, beta)[0], batch.weight
        ),
        point,
    )
    np.testing.assert_allclose(
        slope, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_equal_rewards_teach_nothing():
    params, batch, before = case()
    for reward in (0.0, 1.0, 0.1):
        advantages = group_advantages(jnp.full((2, 3), reward)).reshape(6)
        slope = jax.grad(
            lambda p, a=advantages: grpo(
                p,
                jax.tree.map(jnp.asarray, batch),
                apply_fn=apply_fn,
                advantages=a,
                behaviour_nll=jnp.asarray(before),
                beta=0.0,
            )[0]
        )({"logits": jnp.asarray(params["logits"])})
        assert not np.asarray(slope["logits"]).any()


def test_on_its_own_answers_it_is_reinforce():
    params, batch, _ = case()
    rewards = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    wanted = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    advantages = group_advantages(jnp.asarray(rewards))
    np.testing.assert_allclose(advantages, wanted, rtol=1e-5)
    slope = jax.grad(
        lambda z: grpo(
            {"logits": z},
            jax.tree.map(jnp.asarray, batch),
            apply_fn=apply_fn,
            advantages=advantages.reshape(6),
            beta=0.0,
        )[0]
    )(jnp.asarray(params["logits"]))

    def reinforce(z):
        terms = [
            (gain * np.mean(row), 1) if row else (0.0, 0)
            for gain, row in zip(
                wanted.reshape(6), oracle.losses(z, batch), strict=True
            )
        ]
        return oracle.value(terms, batch.weight)

    expected = oracle.gradient(reinforce, np.float64(params["logits"]))
    np.testing.assert_allclose(
        slope, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_a_divergence_needs_a_reference():
    params, batch, _ = case()
    bare = jax.tree.map(jnp.asarray, batch)._replace(reference_nll=None)
    gains = jnp.asarray(ADVANTAGES)
    with pytest.raises(ValueError, match=r"grpo needs batch\.reference_nll"):
        grpo(params, bare, apply_fn=apply_fn, advantages=gains)
    value, _ = grpo(params, bare, apply_fn=apply_fn, advantages=gains, beta=0.0)
    assert np.isfinite(value)
