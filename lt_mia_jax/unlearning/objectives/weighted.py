"""Gradient ascent with weights on the tokens.

Below, `nll` is -log p of a target token, `p = exp(-nll)`, and `sg` stops the gradient.
"""

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    token_average,
)
from lt_mia_jax.unlearning.objectives.likelihood import reference_of, target_nll


def wga(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 1.0,
) -> tuple[Float[Array, ""], LossAux]:
    """Weighted gradient ascent, `-mean sg(p)^beta nll` over target tokens.

    Settings:
      beta: exponent; 0 is gradient ascent.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = wga(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 3)  # -p * nll
      -0.347

    Source: Rethinking LLM Unlearning Objectives (G-effect), arXiv 2502.19301.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    return _ascend(values, jnp.exp(-beta * values), mask, batch.weight)


def tnpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 4.0,
) -> tuple[Float[Array, ""], LossAux]:
    """Token-wise NPO: ascent with weights `2 p^b / (p^b + p_ref^b + 1e-5)`.

    Settings:
      beta: the exponent b.

    Raises:
      ValueError: the batch has no reference_nll.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1), jnp.full((1, 3), 1.0))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = tnpo(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 3)
      -0.487

    Source: G-effect, arXiv 2502.19301; the constant 1e-5 from its implementation.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    ratio = _reference_ratio(values, reference_of(batch, mask, "tnpo"), beta)
    return _ascend(values, ratio, mask, batch.weight)


def wtnpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 4.0,
    alpha: float = 1.5,
) -> tuple[Float[Array, ""], LossAux]:
    """Weighted token-wise NPO: the weights of `tnpo` times `p^alpha`.

    Settings:
      beta: exponent of the ratio to the reference.
      alpha: exponent of the further factor.

    Raises:
      ValueError: the batch has no reference_nll.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1), jnp.full((1, 3), 1.0))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = wtnpo(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 3)
      -0.061

    Source: G-effect, arXiv 2502.19301; the constant 1e-5 from its implementation.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    ratio = _reference_ratio(values, reference_of(batch, mask, "wtnpo"), beta)
    return _ascend(values, ratio * jnp.exp(-alpha * values), mask, batch.weight)


def satimp(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta1: float = 5.0,
    beta2: float = 1.0,
) -> tuple[Float[Array, ""], LossAux]:
    """Saturation and importance: ascent with weights `p^beta1 (1 - p)^beta2`.

    Settings:
      beta1: exponent of the probability.
      beta2: exponent of `1 - p`.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model = lambda params, ids: jnp.zeros((1, 3, 4))
      >>> value, aux = satimp(None, batch, apply_fn=model, beta1=1.0)
      >>> round(float(value), 3)  # -p (1 - p) nll
      -0.26

    Source: Exploring Criteria of Loss Reweighting (SatImp), arXiv 2505.11953.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    token_weight = jnp.exp(-beta1 * values) * (-jnp.expm1(-values)) ** beta2
    return _ascend(values, token_weight, mask, batch.weight)


def _ascend(
    values: Float[Array, "B T"],
    token_weight: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    weight: Float[Array, "B"],
) -> tuple[Float[Array, ""], LossAux]:
    """Ascent on the token losses, the weights of the tokens taken as constants."""
    return token_average(-jax.lax.stop_gradient(token_weight) * values, mask, weight)


def _reference_ratio(
    values: Float[Array, "B T"], reference: Float[Array, "B T"], beta: float
) -> Float[Array, "B T"]:
    p = jnp.exp(-beta * values)
    return 2.0 * p / (p + jnp.exp(-beta * reference) + 1e-5)
