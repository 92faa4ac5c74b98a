"""The policy loss against its definition in float64, its averages, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit

from lt_mia_jax.policy.objective import (
    baseline_advantages,
    group_advantages,
    policy_loss,
    token_gains,
)

N, T, STEPS = 5, 6, 3


def case(seed=0):
    """Log probabilities of three policies a little apart, a ragged mask, steps."""
    rng = np.random.default_rng(seed)
    old = -rng.uniform(0.1, 3.0, (N, T))
    new, reference = old + 0.4 * rng.normal(size=(2, N, T))
    mask = np.arange(T) < np.array([6, 3, 1, 0, 4])[:, None]
    return {
        "log_prob": new,
        "old": old,
        "reference": reference,
        "advantages": rng.normal(size=N),
        "mask": mask,
        "steps": rng.integers(0, STEPS, (N, T)),
    }


def defined(c, average, clip, beta, length=10):
    """Answer by answer, token by token, in float64."""
    texts, everything = [], []
    for n in range(N):
        gains, by_step = [], {}
        for t in range(T):
            if not c["mask"][n, t]:
                continue
            gain = c["advantages"][n]
            ratio = np.exp(c["log_prob"][n, t] - c["old"][n, t])
            term = ratio * gain
            if clip is not None:
                term = min(term, min(max(ratio, 1 - clip), 1 + clip) * gain)
            apart = c["reference"][n, t] - c["log_prob"][n, t]
            gains.append(term - beta * (np.exp(apart) - apart - 1))
            by_step.setdefault(c["steps"][n, t], []).append(gains[-1])
        if gains:
            everything += gains
            texts.append(
                {
                    "texts": np.mean(gains),
                    "length": np.sum(gains) / length,
                    "steps": np.mean([np.mean(x) for x in by_step.values()]),
                }.get(average)
            )
    return -np.mean(everything if average == "tokens" else texts)


def call(c, average, clip, beta, log_prob=None):
    arrays = {k: jnp.asarray(x, jnp.float32) for k, x in c.items()}
    return policy_loss(
        arrays["log_prob"] if log_prob is None else log_prob,
        arrays["old"],
        arrays["advantages"],
        jnp.asarray(c["mask"]),
        clip=clip,
        beta=beta,
        reference=arrays["reference"] if beta else None,
        average=average,
        length=10,
        steps=jnp.asarray(c["steps"]),
        step_count=STEPS,
    )


@pytest.mark.parametrize("average", ["tokens", "texts", "length", "steps"])
@pytest.mark.parametrize(("clip", "beta"), [(0.2, 0.04), (0.1, 0.0), (None, 0.5)])
def test_value_and_gradient_equal_the_definition(average, clip, beta):
    c = case()
    program = jit(
        jax.value_and_grad(lambda x: call(c, average, clip, beta, x), has_aux=True)
    )
    (value, aux), slope = program(jnp.asarray(c["log_prob"], jnp.float32))
    np.testing.assert_allclose(value, defined(c, average, clip, beta), rtol=1e-5)
    expected, step = np.zeros((N, T)), 1e-6
    for place in np.ndindex(N, T):
        sides = []
        for sign in (1, -1):
            moved = c["log_prob"].copy()
            moved[place] += sign * step
            sides.append(defined(c | {"log_prob": moved}, average, clip, beta))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=2e-4, atol=1e-6)
    assert (aux.clipped > 0) == (clip is not None)


@pytest.mark.parametrize("average", ["tokens", "texts", "length", "steps"])
def test_the_value_of_a_batch_from_its_parts(average):
    c = case(1)
    value, aux = call(c, average, 0.2, 0.04)
    parts = [
        call({k: x[rows] for k, x in c.items()}, average, 0.2, 0.04)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    total = sum(v * a.normalizer for v, a in parts)
    np.testing.assert_allclose(value, total / aux.normalizer, rtol=1e-5)


def test_the_first_update_is_that_of_reinforce():
    """At the policy that sampled, the ratio is 1, and so is the slope's factor."""
    c = case(2)
    c["log_prob"] = c["old"]

    def reinforce(log_prob):
        chosen = jnp.where(c["mask"], log_prob * c["advantages"][:, None], 0.0)
        return -chosen.sum() / c["mask"].sum()

    point = jnp.asarray(c["old"], jnp.float32)
    for clip in (0.2, None):
        slope = jax.grad(lambda x, clip=clip: call(c, "tokens", clip, 0.0, x)[0])(point)
        np.testing.assert_allclose(slope, jax.grad(reinforce)(point), rtol=1e-6)
    ratio = token_gains(point, point, jnp.ones((N, T)))
    np.testing.assert_array_equal(ratio, 1.0)


def test_a_clipped_token_has_no_gradient():
    old, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    for gain, moved in ((1.0, 0.5), (-1.0, -0.5)):
        advantage = jnp.array([gain])
        at = jnp.array([[moved, 0.0]])
        slope = jax.grad(lambda x, a=advantage: policy_loss(x, old, a, mask)[0])(at)
        assert slope[0, 0] == 0
        assert slope[0, 1] != 0


def test_what_stands_outside_the_mask_does_not_matter():
    c = case(3)
    spoiled = c | {
        name: np.where(c["mask"], c[name], value)
        for name, value in [("log_prob", np.inf), ("old", -np.inf), ("reference", 90.0)]
    }
    for average in ("tokens", "texts", "length", "steps"):
        np.testing.assert_array_equal(
            call(c, average, 0.2, 0.1)[0], call(spoiled, average, 0.2, 0.1)[0]
        )
    nothing = c | {"mask": np.zeros((N, T), bool)}
    assert call(nothing, "texts", 0.2, 0.1)[0] == 0


def test_advantages_of_groups():
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(3, 4))
    rewards[1] = 0.1  # one group of equal rewards
    found = group_advantages(jnp.asarray(rewards, jnp.float32))
    expected = (rewards - rewards.mean(1, keepdims=True)) / (
        rewards.std(1, keepdims=True) + 1e-6
    )
    expected[1] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    plain = group_advantages(jnp.asarray(rewards, jnp.float32), scale=False)
    np.testing.assert_allclose(
        plain, rewards - rewards.mean(1, keepdims=True), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(plain[1], 0)


def test_a_running_baseline_is_the_mean_in_the_end():
    mean = jnp.zeros(())
    for _ in range(200):
        gain, mean = baseline_advantages(jnp.array([2.0, 4.0]), mean)
    np.testing.assert_allclose(mean, 3.0, rtol=1e-5)
    np.testing.assert_allclose(gain, [-1.0, 1.0], rtol=1e-4)


def test_what_is_missing_is_named():
    x, gain = jnp.zeros((1, 2)), jnp.ones(1)
    with pytest.raises(ValueError, match="needs a reference"):
        policy_loss(x, x, gain, x == 0, beta=0.1)
    with pytest.raises(ValueError, match="needs a length"):
        policy_loss(x, x, gain, x == 0, average="length")
    with pytest.raises(ValueError, match="needs steps"):
        policy_loss(x, x, gain, x == 0, average="steps")
