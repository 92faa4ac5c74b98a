"""Log probabilities of decoded tokens: on the states they came from, or in one step.

Source: CJ-GRPO, consistency trajectory GRPO (`yjyddq/EOSER-ASS-RL`). Kept: states of
every step recorded, the ratio of each step's new tokens on the state before it, means
over steps, advantages without division. Not kept: models of 8B, half precision. As in
the paper the ratio is of the tokens given their places; choosing the places by
confidence is not in the likelihood.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, Params
from lt_mia_jax.policy.diffusion.decode import (
    DecodeSettings,
    Rollout,
    token_log_probs,
    trajectory,
)
from lt_mia_jax.policy.diffusion.model import Diffusion, response_logits
from lt_mia_jax.policy.objective import PolicyAux, policy_loss


def over_states(
    score: Callable[[Int[Array, "N T"]], Float[Array, "N T"]],
    states: Int[Array, "S N T"],
    new: Bool[Array, "S N T"],
) -> Float[Array, "N T"]:
    """`score(state)` at the tokens that are new in it; 0 where none is.

    States are scored one after the other and again in the backward pass: memory is that
    of one.
    """

    def step(
        total: Float[Array, "N T"], now: tuple[Array, Array]
    ) -> tuple[Float[Array, "N T"], None]:
        state, chosen = now
        return jnp.where(chosen, score(state), total), None

    start = jnp.zeros(states.shape[1:], jnp.float32)
    return jax.lax.scan(jax.checkpoint(step), start, (states, new))[0]


def state_log_probs(
    diffusion: Diffusion,
    params: Params,
    rollout: Rollout,
    states: Int[Array, "S N T"],
    new: Bool[Array, "S N T"],
) -> Float[Array, "N T"]:
    """Log probability of each token of a rollout in the state in which it is new."""

    def score(state: Int[Array, "N T"]) -> Float[Array, "N T"]:
        logits = response_logits(
            diffusion, params, rollout.prompts, rollout.lengths, state
        )
        return token_log_probs(logits, rollout.tokens, rollout.settings.temperature)

    return over_states(score, states, new)


def trajectory_log_probs(
    diffusion: Diffusion, params: Params, rollout: Rollout, settings: DecodeSettings
) -> Float[Array, "N T"]:
    """Log probability of each token on the state before the step that committed it.

    For the parameters that decoded it is `rollout.log_probs` to rounding. `settings`
    are those that the caller decodes with.

    Example:
      >>> from lt_mia_jax.models import LanguageModel, gpt2_like
      >>> from lt_mia_jax.policy.diffusion.decode import decode
      >>> from lt_mia_jax.policy.diffusion.model import bidirectional
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=16)
      >>> denoiser = Diffusion(LanguageModel(bidirectional(config)), mask=63, end=0)
      >>> params, key = denoiser.model.init(jax.random.key(0)), jax.random.key(1)
      >>> settings = DecodeSettings(4, counts=(1, 3))
      >>> texts = jnp.array([[5, 6]]), jnp.array([2])
      >>> found = decode(denoiser, params, *texts, settings=settings, key=key)
      >>> again = trajectory_log_probs(denoiser, params, found, settings)
      >>> float(abs(again - found.log_probs).max()) < 1e-5
      True

    Raises:
      InputError: the rollout was decoded with other settings.
    """
    rollout.check(settings)
    states, new = trajectory(
        rollout.tokens, rollout.steps, settings.steps, diffusion.mask
    )
    return state_log_probs(diffusion, params, rollout, states[:-1], new)


def one_step_log_probs(
    diffusion: Diffusion, params: Params, rollout: Rollout, settings: DecodeSettings
) -> Float[Array, "N T"]:
    """Log probability of each token with the whole response masked.

    One pass instead of one a step, and what CJ-GRPO is compared with: no token sees
    another one, unlike when they were decoded. A rollout decoded with other settings
    raises an `InputError`.
    """
    rollout.check(settings)
    states = jnp.full_like(rollout.tokens, diffusion.mask)[None]
    return state_log_probs(
        diffusion, params, rollout, states, jnp.ones_like(states, bool)
    )


def cj_grpo_loss(
    log_probs: Float[Array, "N T"],
    rollout: Rollout,
    advantages: Float[Array, "N"],
    *,
    old: Float[Array, "N T"] | None = None,
    reference: Float[Array, "N T"] | None = None,
    clip: float | None = 0.5,
    beta: float = 0.04,
) -> tuple[Float[Array, ""], PolicyAux]:
    """`policy_loss` with the mean over a step's tokens, over steps, and over texts.

    Args:
      log_probs: of `trajectory_log_probs` under the parameters to train.
      rollout: what was decoded.
      advantages: reward minus the mean of the group, `group_advantages(scale=False)`.
      old: of the same function before the first update on these rollouts; None is that
        first update, whose ratio is 1 to the bit.
      reference: of the same function under the model to stay close to; None: no KL.
      clip: range of the ratio.
      beta: weight of the KL.
    """
    return policy_loss(
        log_probs,
        jax.lax.stop_gradient(log_probs) if old is None else old,
        advantages,
        jnp.ones_like(rollout.tokens, bool),
        clip=clip,
        beta=0.0 if reference is None else beta,
        reference=reference,
        average="steps",
        steps=rollout.steps,
        step_count=rollout.settings.steps,
    )
