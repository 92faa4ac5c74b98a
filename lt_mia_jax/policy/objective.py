"""The clipped policy-gradient objective and its advantages, as pure functions.

What is scored is up to the caller: arrays are "N T", N sampled answers of T positions,
with a mask of the positions at which the policy chose something. Autoregressive
answers, denoising steps and choices of blocks differ in nothing else.
"""

from typing import Literal, NamedTuple, assert_never

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int

Average = Literal["tokens", "texts", "length", "steps"]
"""How tokens become one number: the mean over all "tokens"; the mean over "texts" of
their token means; the sum divided by N times a constant "length"; the mean over texts
of the mean over "steps" of token means."""


class PolicyAux(NamedTuple):
    """What `policy_loss` returns beside its value."""

    normalizer: Float[Array, ""]
    """What the sum was divided by; the value of a batch from its parts is
    `sum(value * normalizer) / sum(normalizer)`."""
    clipped: Float[Array, ""]
    """Fraction of the tokens whose gradient the clip removed."""
    divergence: Float[Array, ""]
    """Mean KL estimate to the reference, in nats per token; 0 without one."""


def group_advantages(
    rewards: Float[Array, "Q G"], *, scale: bool = True
) -> Float[Array, "Q G"]:
    """Reward of each of the G answers to a prompt relative to its group.

    `(r - mean) / (std + 1e-6)`, without `scale` only `r - mean`; 0 in groups of equal
    rewards.

    Example:
      >>> group_advantages(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
      Array([[ 1., -1.],
             [ 0.,  0.]], dtype=float32)

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, section 4.1; without the division
    "CJ-GRPO" (`yjyddq/EOSER-ASS-RL`).
    """
    rewards = rewards.astype(jnp.float32)
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    equal = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)  # to the last bit
    if scale:
        spread = jnp.sqrt((centered**2).mean(axis=1, keepdims=True))
        centered = centered / (spread + 1e-6)
    return jnp.where(equal, 0.0, centered)


def baseline_advantages(
    rewards: Float[Array, "N"], baseline: Float[Array, ""], decay: float = 0.9
) -> tuple[Float[Array, "N"], Float[Array, ""]]:
    """Rewards minus a running mean, and the running mean after them.

    Example:
      >>> gain, mean = baseline_advantages(jnp.array([1.0, 3.0]), jnp.array(1.0))
      >>> gain, mean.round(3)
      (Array([0., 2.], dtype=float32), Array(1.1, dtype=float32))

    Source: REINFORCE with a baseline (Williams 1992), section 3.
    """
    rewards = rewards.astype(jnp.float32)
    return rewards - baseline, decay * baseline + (1 - decay) * rewards.mean()


def token_gains(
    log_prob: Float[Array, "N T"],
    old: Float[Array, "N T"],
    advantages: Float[Array, "N T"],
    *,
    clip: float | None = 0.2,
    beta: float = 0.0,
    reference: Float[Array, "N T"] | None = None,
) -> Float[Array, "N T"]:
    """`min(r A, clip(r, 1 - e, 1 + e) A) - beta KL3` of each token, to be maximized.

    `r = exp(log_prob - old)`; `KL3 = exp(q - p) - (q - p) - 1` with `p` the log
    probability and `q` that of the reference. Without `clip` it is `r A`, whose
    gradient at `old` is that of REINFORCE. `old`, `advantages` and `reference` are
    constants. Unmasked positions may hold anything finite.

    Raises:
      ValueError: `beta` is not 0 and there is no reference.

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, equations 3 and 4.
    """
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(old))
    gain = jax.lax.stop_gradient(advantages).astype(jnp.float32)
    gains = ratio * gain
    if clip is not None:
        gains = jnp.minimum(gains, jnp.clip(ratio, 1 - clip, 1 + clip) * gain)
    if beta:
        if reference is None:
            raise ValueError("policy loss: beta is not 0, so it needs a reference")
        apart = jax.lax.stop_gradient(reference) - log_prob
        gains = gains - beta * (jnp.expm1(apart) - apart)
    return gains


def policy_loss(
    log_prob: Float[Array, "N T"],
    old: Float[Array, "N T"],
    advantages: Float[Array, "N"] | Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    *,
    clip: float | None = 0.2,
    beta: float = 0.0,
    reference: Float[Array, "N T"] | None = None,
    average: Average = "tokens",
    length: int | None = None,
    steps: Int[Array, "N T"] | None = None,
    step_count: int | None = None,
) -> tuple[Float[Array, ""], PolicyAux]:
    """The loss whose descent raises the probability of what was rewarded.

    Args:
      log_prob: of the chosen tokens, under the parameters to train.
      old: the same when they were sampled.
      advantages: of each answer, or of each token.
      mask: the tokens that were chosen. Answers without any count for nothing.
      clip: range of the ratio; None does not clip.
      beta: weight of the divergence from the reference.
      reference: log probabilities under the model to stay close to.
      average: see `Average`.
      length: the constant of "length".
      steps: for "steps", the step in [0, step_count) at which a token was chosen.
      step_count: their number.

    Example:
      >>> zeros = jnp.zeros((2, 3))
      >>> gain = jnp.array([1.0, -0.5])
      >>> value, aux = policy_loss(zeros, zeros, gain, zeros == 0)
      >>> float(value)
      -0.25

    Raises:
      ValueError: an argument that `average` or `beta` needs is missing.

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, eq. 3 (the average over "texts");
    DAPO, arXiv 2503.14476, eq. 8 ("tokens"); Dr. GRPO, arXiv 2503.20783, section 3.1
    ("length"); CJ-GRPO (`yjyddq/EOSER-ASS-RL`; "steps").
    """
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    advantages = jnp.broadcast_to(advantages, mask.shape)
    # A where before the exponential: outside the mask anything may stand.
    log_prob, old = (jnp.where(mask, x, 0.0) for x in (log_prob, old))
    if reference is not None:
        reference = jnp.where(mask, reference, 0.0)
    gains = token_gains(
        log_prob, old, advantages, clip=clip, beta=beta, reference=reference
    )
    weight, normalizer = _weights(mask, average, length, steps, step_count)
    value = -(weight * jnp.where(mask, gains, 0.0)).sum() / jnp.maximum(
        normalizer, 1e-9
    )
    return value, _aux(log_prob, old, advantages, mask, clip, reference, normalizer)


def _weights(
    mask: Bool[Array, "N T"],
    average: Average,
    length: int | None,
    steps: Int[Array, "N T"] | None,
    step_count: int | None,
) -> tuple[Float[Array, "N T"], Float[Array, ""]]:
    """The weight of each token in the sum, and what the sum is divided by."""
    chosen = mask.astype(jnp.float32)
    tokens = chosen.sum(axis=1)
    texts = (tokens > 0).astype(jnp.float32).sum()
    match average:
        case "tokens":
            return chosen, tokens.sum()
        case "texts":
            return chosen / jnp.maximum(tokens, 1.0)[:, None], texts
        case "length":
            if length is None:
                raise ValueError('policy loss: average "length" needs a length')
            return chosen / length, texts
        case "steps":
            if steps is None or step_count is None:
                raise ValueError('policy loss: average "steps" needs steps, step_count')
            at = jax.nn.one_hot(steps, step_count) * chosen[:, :, None]
            within = at.sum(axis=1)  # tokens of each step
            some = jnp.maximum((within > 0).sum(axis=1), 1)
            each = jnp.einsum("nts,ns->nt", at, 1.0 / jnp.maximum(within, 1.0))
            return each / some[:, None], texts
        case _:
            assert_never(average)


def _aux(
    log_prob: Float[Array, "N T"],
    old: Float[Array, "N T"],
    advantages: Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    clip: float | None,
    reference: Float[Array, "N T"] | None,
    normalizer: Float[Array, ""],
) -> PolicyAux:
    tokens = jnp.maximum(mask.sum(), 1)
    ratio = jnp.exp(jax.lax.stop_gradient(log_prob) - old)
    outside = jnp.zeros(mask.shape, bool)
    if clip is not None:
        high = (advantages > 0) & (ratio > 1 + clip)
        outside = high | ((advantages < 0) & (ratio < 1 - clip))
    divergence = jnp.zeros(())
    if reference is not None:
        apart = reference - jax.lax.stop_gradient(log_prob)
        terms = jnp.where(mask, jnp.expm1(apart) - apart, 0.0)
        divergence = terms.sum() / tokens
    return PolicyAux(normalizer, (outside & mask).sum() / tokens, divergence)
