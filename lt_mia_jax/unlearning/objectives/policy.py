"""Group-relative policy optimization (GRPO): forgetting by reward.

The model answers a prompt several times; answers that reveal nothing get a higher
reward than the others of their group. The reward is up to the caller.
"""

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    count_tokens,
    mean_tokens,
    text_average,
)
from lt_mia_jax.unlearning.objectives.likelihood import reference_of, target_nll


def group_advantages(rewards: Float[Array, "G N"]) -> Float[Array, "G N"]:
    """Reward of each of the N answers to a prompt relative to its group.

    `(r - mean) / (std + 1e-6)`; 0 in groups of equal rewards.

    Example:
      >>> group_advantages(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
      Array([[ 1., -1.],
             [ 0.,  0.]], dtype=float32)

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, section 4.1; for unlearning PURGE,
    arXiv 2601.20568.
    """
    rewards = rewards.astype(jnp.float32)
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    equal = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)  # to the last bit
    spread = jnp.sqrt((centered**2).mean(axis=1, keepdims=True))
    return jnp.where(equal, 0.0, centered / (spread + 1e-6))


def grpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    advantages: Float[Array, "B"],
    behaviour_nll: Float[Array, "B T"] | None = None,
    key: Key[Array, ""] | None = None,
    epsilon: float = 0.2,
    beta: float = 0.04,
) -> tuple[Float[Array, ""], LossAux]:
    """`-mean_texts mean_tokens [min(r A, clip(r, 1 - e, 1 + e) A) - beta KL3]`.

    `r` is the ratio of a token's probability to that under the model that wrote the
    answers; `KL3 = q - log q - 1` with `q` the ratio of the reference to the model. The
    batch holds prompts with sampled answers as targets, and `reference_nll` unless
    `beta` is 0.

    Settings:
      advantages: of each answer; see `group_advantages`.
      behaviour_nll: -log p of the targets when they were sampled, at shifted positions
        (`cached_reference_nll`); None if the model itself wrote them.
      epsilon: clipping range of the ratio.
      beta: weight of the divergence from the reference, in nats.

    Example:
      >>> ids = jnp.array([[0, 1], [0, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(2), jnp.ones((2, 2)))
      >>> advantages = group_advantages(jnp.array([[1.0, 0.0]]))[0]
      >>> model = lambda params, ids: jnp.zeros((2, 2, 4))
      >>> value, aux = grpo(None, batch, apply_fn=model, advantages=advantages)
      >>> aux.per_example.round(2)  # the first answer is worth more
      Array([-1.,  1.], dtype=float32)

    Raises:
      ValueError: `beta` is not 0 and the batch has no reference_nll.

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, equations 3 and 4.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    before = values if behaviour_nll is None else jnp.where(mask, behaviour_nll, 0.0)
    ratio = jnp.exp(jax.lax.stop_gradient(before) - values)
    gain = jax.lax.stop_gradient(advantages)[:, None].astype(jnp.float32)
    terms = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * gain)
    if beta:
        apart = values - reference_of(batch, mask, "grpo")
        terms = terms - beta * (jnp.expm1(apart) - apart)
    return text_average(mean_tokens(-terms, mask), count_tokens(mask), batch.weight)
