"""REINFORCE for small policies: a learner with a running-mean baseline.

The policy is any function from parameters to log probabilities of what was chosen;
blocks to keep (`blocks`) and source tasks (`meta`) are chosen so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.policy.objective import baseline_advantages, policy_loss


class Learner(NamedTuple):
    """A policy in training."""

    params: Any
    """Of the policy."""
    state: Any
    """Of the optimizer."""
    baseline: Float[Array, ""]
    """Running mean of the rewards; NaN before the first ones."""


def new_learner(params: Any, optimizer: optax.GradientTransformation) -> Learner:
    """A learner that has seen no reward."""
    return Learner(params, optimizer.init(params), jnp.asarray(jnp.nan, jnp.float32))


def reinforce(
    learner: Learner,
    log_probs: Callable[[Any], Float[Array, "N T"]],
    rewards: Float[Array, "N"],
    *,
    optimizer: optax.GradientTransformation,
    old: Float[Array, "N T"] | None = None,
    decay: float = 0.9,
) -> Learner:
    """The learner after one update on N rollouts of T choices each.

    Each rollout is credited with its own reward minus the running mean of earlier
    batches (of this batch, if it is the first one). Choices of a rollout are summed,
    rollouts are averaged.

    Args:
      learner: the policy before.
      log_probs: from parameters of the policy to the log probabilities of the choices.
      rewards: of each rollout.
      optimizer: as in `new_learner`.
      old: log probabilities under the distribution that the choices were drawn from;
        None if that was the policy itself.
      decay: of the running mean.

    Example:
      >>> choices = jnp.array([[0], [1]])
      >>> log_probs = lambda logits: jax.nn.log_softmax(logits)[choices]
      >>> learner = new_learner(jnp.zeros(2), optax.sgd(1.0))
      >>> rewards = jnp.array([1.0, 0.0])
      >>> learner = reinforce(learner, log_probs, rewards, optimizer=optax.sgd(1.0))
      >>> learner.params, learner.baseline
      (Array([ 0.25, -0.25], dtype=float32), Array(0.5, dtype=float32))

    Source: REINFORCE (Williams 1992). N2N's release (`anubhavashok/N2N`) credits every
    rollout with the average reward of its batch, which tells nothing about the
    rollouts; here each has its own.
    """
    baseline = jnp.where(jnp.isnan(learner.baseline), rewards.mean(), learner.baseline)
    advantages, baseline = baseline_advantages(rewards, baseline, decay)

    def loss(params: Any) -> Array:
        found = log_probs(params)
        before = jax.lax.stop_gradient(found) if old is None else old
        mask = jnp.ones(found.shape, bool)
        value, _ = policy_loss(
            found, before, advantages, mask, clip=None, average="length", length=1
        )
        return value

    gradient = jax.grad(loss)(learner.params)
    updates, state = optimizer.update(gradient, learner.state, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), state, baseline)
