"""Meta-RTL: Reptile on several source tasks, weighted by a policy.

In each iteration a copy of the meta model learns each source for some steps. The meta
model moves towards the copies, by weights from an LSTM over iterations. The policy is
rewarded for sources whose copy does better on the few texts of the target.

Source: "Meta-RTL: Reinforcement-Based Meta-Transfer Learning for Low-Resource
Commonsense Reasoning", arXiv 2409.19075. Kept: the weighted Reptile step, the LSTM over
iterations with a softmax, the reward. Not kept: backbones and data. Ours: what the LSTM
reads (weights and rewards of the last iteration), its size, and that its gradient does
not reach back beyond the current iteration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.policy.reinforce import Learner, new_learner, reinforce

Loss = Callable[[Any, Any], Array]
"""(parameters, batch) to a scalar."""


def adapt_sources(
    loss: Loss, inner: optax.GradientTransformation, params: Any, batches: Any
) -> Any:
    """A copy of the parameters for each source, after its inner steps.

    Leaves of `batches` have two leading axes: the K sources, and the batches of each,
    one a step. The copies are stacked on a leading axis; their optimizers start anew.
    """

    def adapted(own: Any) -> Any:
        def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            gradient = jax.grad(loss)(params, batch)
            updates, state = inner.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, inner.init(params)), own)[0][0]

    return jax.vmap(adapted)(batches)


def weighted_reptile(
    params: Any, copies: Any, weights: Float[Array, "K"], beta: float = 1.0
) -> Any:
    """`params + beta * sum_i weights_i (copies_i - params)`.

    Example:
      >>> copies = jnp.array([1.0, 5.0])
      >>> weighted_reptile(jnp.array(1.0), copies, jnp.array([0.5, 0.5]), beta=0.5)
      Array(2., dtype=float32)

    Source: Reptile, arXiv 1803.02999, with equal weights.
    """

    def moved(x: Array, own: Array) -> Array:
        step = jnp.tensordot(weights, own - x[None], axes=1)
        return x + (beta * step).astype(x.dtype)

    return jax.tree.map(moved, params, copies)


class SourcePolicy(nn.Module):
    """The logit of each source, from the weights and rewards of the last iteration."""

    sources: int
    """K, their number."""
    hidden: int = 30
    """Units of the LSTM."""

    @nn.compact
    def __call__(self, carry: Any, seen: Float[Array, "E"]) -> tuple[Any, Array]:
        """The state for the next iteration, and the K logits of this one; E = 2 K."""
        carry, x = nn.OptimizedLSTMCell(self.hidden)(carry, seen)
        return carry, nn.Dense(self.sources)(x)

    def start(self) -> Any:
        """The state before the first iteration."""
        shape = (2 * self.sources,)
        cell = nn.OptimizedLSTMCell(self.hidden, parent=None)
        return cell.initialize_carry(jax.random.key(0), shape)


@dataclass(frozen=True)
class MetaConfig:
    """What an iteration needs beside arrays; hashable, so it can be static."""

    loss: Loss
    """Of a batch, of sources and target alike."""
    inner: optax.GradientTransformation
    """Optimizer of the copies."""
    policy: SourcePolicy
    optimizer: optax.GradientTransformation
    """Of the policy."""
    beta: float = 1.0
    """Step towards the copies."""
    decay: float = 0.9
    """Of the running mean of rewards."""


class MetaState(NamedTuple):
    """What an iteration hands to the next."""

    learner: Learner
    carry: Any
    """State of the LSTM."""
    seen: Float[Array, "E"]
    """Weights and rewards of the last iteration."""


class MetaAux(NamedTuple):
    """What happened in an iteration."""

    weights: Float[Array, "K"]
    """Of the sources; they sum to 1."""
    rewards: Float[Array, "K"]
    """`L_meta - L_i` on the target, in the unit of the loss."""


def new_meta_state(config: MetaConfig, key: Key[Array, ""]) -> MetaState:
    """The state before the first iteration; its LSTM reads equal weights and zeros."""
    count, carry = config.policy.sources, config.policy.start()
    seen = jnp.concatenate([jnp.full(count, 1 / count), jnp.zeros(count)])
    params = config.policy.init(key, carry, seen)["params"]
    return MetaState(new_learner(params, config.optimizer), carry, seen)


def meta_step(
    config: MetaConfig, params: Any, state: MetaState, sources: Any, target: Any
) -> tuple[Any, MetaState, MetaAux]:
    """One iteration: parameters, state, and what happened.

    All K sources are tried, not drawn from the policy. The policy's update weighs each
    by its probability under the policy to that of a uniform draw, so that it ascends
    the expected reward of a source drawn from the policy.

    Args:
      config: losses, optimizers and sizes.
      params: of the meta model.
      state: `new_meta_state`, or that of the iteration before.
      sources: batches; leaves have leading axes K and inner steps.
      target: one batch of the target.
    """
    count = config.policy.sources
    carry, logits = _policy(config, state, state.learner.params)
    weights = jax.nn.softmax(logits)
    copies = adapt_sources(config.loss, config.inner, params, sources)
    losses = jax.vmap(config.loss, in_axes=(0, None))(copies, target)
    rewards = source_rewards(config.loss(params, target), losses)

    def log_probs(policy: Any) -> Array:
        return jax.nn.log_softmax(_policy(config, state, policy)[1])[:, None]

    learner = reinforce(
        state.learner,
        log_probs,
        rewards,
        optimizer=config.optimizer,
        old=jnp.full((count, 1), -jnp.log(count)),
        decay=config.decay,
    )
    moved = weighted_reptile(params, copies, weights, config.beta)
    seen = jnp.concatenate([weights, rewards])
    return moved, MetaState(learner, carry, seen), MetaAux(weights, rewards)


def source_rewards(
    meta: Float[Array, ""], sources: Float[Array, "K"]
) -> Float[Array, "K"]:
    """`L_meta - L_i`: positive where a source's copy does better on the target.

    Example:
      >>> source_rewards(jnp.array(2.0), jnp.array([1.5, 3.0]))
      Array([ 0.5, -1. ], dtype=float32)
    """
    return meta - sources


def _policy(config: MetaConfig, state: MetaState, params: Any) -> tuple[Any, Array]:
    found: Any = config.policy.apply({"params": params}, state.carry, state.seen)
    return found
