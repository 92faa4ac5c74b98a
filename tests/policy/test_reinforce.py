"""One update of REINFORCE against the gradient written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import jit

from lt_mia_jax.policy.reinforce import new_learner, reinforce

SGD = optax.sgd(1.0)
CHOICES = np.array([[0, 2], [1, 1], [3, 0]])
REWARDS = jnp.array([0.7, -0.2, 1.1])


def log_probs(logits):
    return jax.nn.log_softmax(logits)[jnp.asarray(CHOICES)]


def slow_gradient(logits, advantages, weights=None):
    """`mean_n sum_t A_n weight_nt grad log p(choice_nt)`."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    total = np.zeros(len(logits))
    for n, row in enumerate(CHOICES):
        for t, choice in enumerate(row):
            weight = 1.0 if weights is None else weights[n, t]
            total += advantages[n] * weight * (np.eye(len(logits))[choice] - p)
    return total / len(CHOICES)


@pytest.mark.parametrize("baseline", [None, 0.25])
def test_an_update_is_the_score_of_each_choice_times_its_own_gain(baseline):
    logits = np.array([0.3, -0.5, 0.1, 0.9])
    learner = new_learner(jnp.asarray(logits, jnp.float32), SGD)
    if baseline is not None:
        learner = learner._replace(baseline=jnp.asarray(baseline))
    found = jit(lambda x: reinforce(x, log_probs, REWARDS, optimizer=SGD))(learner)
    before = float(REWARDS.mean()) if baseline is None else baseline
    step = slow_gradient(logits, np.asarray(REWARDS, float) - before)
    np.testing.assert_allclose(found.params - logits, step, atol=1e-6)
    expected = 0.9 * before + 0.1 * float(REWARDS.mean())
    assert float(found.baseline) == pytest.approx(expected, rel=1e-6)


def test_rollouts_of_one_batch_are_credited_apart():
    """The batch average as everyone's reward would move nothing on the first batch."""
    learner = new_learner(jnp.zeros(4), SGD)
    rewards = jnp.array([1.0, 0.0, 0.0])
    found = jit(lambda x: reinforce(x, log_probs, rewards, optimizer=SGD))(learner)
    assert not np.any(slow_gradient(np.zeros(4), np.zeros(3)))
    # Token 2 was chosen in the rewarded rollout alone, token 3 in another one.
    assert float(found.params[2]) > 0 > float(found.params[3])


def test_choices_drawn_elsewhere_are_weighed_by_their_ratio():
    logits = np.array([0.3, -0.5, 0.1, 0.9])
    old = np.log(np.array([[0.25, 0.25], [0.5, 0.1], [0.7, 0.2]]))
    learner = new_learner(jnp.asarray(logits, jnp.float32), SGD)
    found = jit(
        lambda x: reinforce(x, log_probs, REWARDS, optimizer=SGD, old=jnp.asarray(old))
    )(learner)
    p = np.exp(logits) / np.exp(logits).sum()
    gains = np.asarray(REWARDS, float) - float(REWARDS.mean())
    step = slow_gradient(logits, gains, p[CHOICES] / np.exp(old))
    np.testing.assert_allclose(found.params - logits, step, atol=1e-6)


def test_equal_rewards_move_nothing():
    learner = new_learner(jnp.array([0.3, -0.5, 0.1, 0.9]), SGD)
    again = jit(lambda x: reinforce(x, log_probs, jnp.ones(3), optimizer=SGD))(learner)
    np.testing.assert_array_equal(again.params, learner.params)
