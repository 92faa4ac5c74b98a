"""Preference losses: bounded ascent, with or without a preferred answer.

Below, `S` is the sum of -log p over the targets of a text, and `A` its mean. The
reference enters as data (`TextBatch.reference_nll`): no second model stays in memory.
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
    sum_tokens,
    text_average,
)
from lt_mia_jax.unlearning.objectives.likelihood import (
    alternative_of,
    reference_of,
    target_nll,
)


def npo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 0.1,
) -> tuple[Float[Array, ""], LossAux]:
    """Negative preference optimization, `-(2/beta) mean log sigmoid(beta (S - S_ref))`.

    At the reference the value is `(2/beta) log 2` and the gradient that of ascent on
    `S`; texts that are already forgotten weigh less.

    Settings:
      beta: inverse temperature; towards 0 it becomes gradient ascent.

    Raises:
      ValueError: the batch has no reference_nll.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1), jnp.full((1, 3), 1.0))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = npo(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 2)  # 2 / beta * log 2 at the reference; lower here
      13.11

    Source: Negative Preference Optimization, arXiv 2404.05868.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    reference = reference_of(batch, mask, "npo")
    # Differences before the sum: exact at the reference, however long the text.
    margin = sum_tokens(values - reference, mask)
    return text_average(_preference(margin, beta), count_tokens(mask), batch.weight)


def simnpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 4.5,
    delta: float = 0.0,
) -> tuple[Float[Array, ""], LossAux]:
    """NPO without a reference, `-(2/beta) mean log sigmoid(beta (A - delta))`.

    Settings:
      beta: inverse temperature.
      delta: margin in nats per token; the paper's gamma divided by beta.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = simnpo(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 4)
      0.0009

    Source: Simplicity Prevails (SimNPO), arXiv 2410.07163.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    terms = _preference(mean_tokens(values, mask) - delta, beta)
    return text_average(terms, count_tokens(mask), batch.weight)


def dpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 0.1,
) -> tuple[Float[Array, ""], LossAux]:
    """Direct preference optimization of the alternative over the text.

    `-(2/beta) mean log sigmoid(beta [(S_ref - S)(alternative) - (S_ref - S)(text)])`.
    With refusals as alternatives this is IdkDPO, with plausible answers AltPO. A text
    whose alternative has no target is left out.

    Settings:
      beta: inverse temperature.

    Raises:
      ValueError: the batch has no alternative, or one of the two no reference_nll.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1), jnp.full((1, 3), 1.0))
      >>> batch = batch._replace(alternative=batch._replace(input_ids=ids[:, ::-1]))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = dpo(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 2)  # both answers are as likely: 2 / beta * log 2
      13.86

    Source: Direct Preference Optimization, arXiv 2305.18290, equation 7, scaled by
    2/beta as NPO; AltPO, arXiv 2409.13474.
    """
    alternative = alternative_of(batch, "dpo")
    lost, mask = target_nll(params, batch, apply_fn, batch.weight)
    won, won_mask = target_nll(params, alternative, apply_fn, batch.weight)
    reference = reference_of(batch, mask, "dpo")
    won_reference = reference_of(alternative, won_mask, "dpo", "batch.alternative")
    margin = sum_tokens(won_reference - won, won_mask)
    margin = margin - sum_tokens(reference - lost, mask)
    tokens = jnp.where(won_mask.any(axis=1), count_tokens(mask), 0.0)
    return text_average(_preference(margin, beta), tokens, batch.weight)


def _preference(margin: Float[Array, "B"], beta: float) -> Float[Array, "B"]:
    return -(2.0 / beta) * jax.nn.log_sigmoid(beta * margin)
