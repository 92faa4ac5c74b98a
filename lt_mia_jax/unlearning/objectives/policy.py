"""Group-relative policy optimization: forgetting by reward instead of by text.

The model answers a prompt several times; answers that give nothing away are rewarded
beside the others of their group. Which words give something away is the caller's.
"""

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    count_tokens,
    sum_tokens,
    text_average,
)
from lt_mia_jax.unlearning.objectives.likelihood import reference_of, target_nll


def group_advantages(rewards: Float[Array, "G N"]) -> Float[Array, "G N"]:
    """How much better each of the N answers to a prompt was than its group.

    `(r - mean) / (std + 1e-6)`; 0 in groups of equal rewards, which teach nothing.

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

    `r` is the probability of a token over that under the model that wrote the answers,
    and `KL3 = q - log q - 1` with `q` the reference's probability over the model's.

    Args:
      params: parameters to train.
      batch: prompts with sampled answers as targets; `reference_nll` unless `beta` is
        0.
      apply_fn: the model.
      advantages: of each answer, as `group_advantages` makes them.
      behaviour_nll: -log p of the targets when the answers were sampled, at shifted
        positions as `cached_reference_nll` gives it; None where that is the model
        itself, whose ratio is 1 but has a gradient.
      key: unused.
      epsilon: how far a ratio may go before its gradient ends.
      beta: weight of the divergence from the reference, in nats.

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
    tokens = count_tokens(mask)
    mean = sum_tokens(-terms, mask) / jnp.maximum(tokens, 1.0)
    return text_average(mean, tokens, batch.weight)
