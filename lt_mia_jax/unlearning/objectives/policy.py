"""Group-relative policy optimization (GRPO): forgetting by reward.

The model answers a prompt several times; answers that reveal nothing get a higher
reward than the others of their group. The reward is up to the caller.
"""

import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key, PyTree
from lt_mia_jax.policy.objective import token_gains
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    count_tokens,
    mean_tokens,
    text_average,
)
from lt_mia_jax.unlearning.objectives.likelihood import reference_of, target_nll


def grpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    advantages: Float[Array, "B"] | None = None,
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
      advantages: of each answer, if the batch does not hold them; see
        `policy.objective.group_advantages`.
      behaviour_nll: -log p of the targets when they were sampled, at shifted positions
        (`cached_reference_nll`); None if the model itself wrote them.
      epsilon: clipping range of the ratio.
      beta: weight of the divergence from the reference, in nats.

    Example:
      >>> ids = jnp.array([[0, 1], [0, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(2), jnp.ones((2, 2)))
      >>> from lt_mia_jax.policy.objective import group_advantages
      >>> advantages = group_advantages(jnp.array([[1.0, 0.0]]))[0]
      >>> model = lambda params, ids: jnp.zeros((2, 2, 4))
      >>> value, aux = grpo(None, batch, apply_fn=model, advantages=advantages)
      >>> aux.per_example.round(2)  # the first answer is worth more
      Array([-1.,  1.], dtype=float32)

    Raises:
      ValueError: there are no advantages, or `beta` is not 0 and the batch has no
        reference_nll.

    Source: DeepSeekMath (GRPO), arXiv 2402.03300, equations 3 and 4.
    """
    advantages = batch.advantages if advantages is None else advantages
    if advantages is None:
        raise ValueError("grpo needs advantages; see policy.objective.group_advantages")
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    before = values if behaviour_nll is None else jnp.where(mask, behaviour_nll, 0.0)
    reference = -reference_of(batch, mask, "grpo") if beta else None
    gain = jnp.broadcast_to(advantages[:, None], mask.shape)
    terms = token_gains(
        -values, -before, gain, clip=epsilon, beta=beta, reference=reference
    )
    return text_average(mean_tokens(-terms, mask), count_tokens(mask), batch.weight)
