"""Objectives on the log-probabilities of the target tokens.

Each is a pure function `objective(params, batch, *, apply_fn, key=None, **settings)`
that returns a float32 value **to be minimized**, with `LossAux`. Settings default to
the published values. `key` is part of the common signature; none of these draws
anything.

Below, `nll` is -log p of a target token, `S` its sum over a text, `A` its mean over a
text, `p = exp(-nll)`, and `sg` stops the gradient. What the reference says enters as
data (`TextBatch.reference_nll`), so that no second model stands in training memory.
Texts without targets, and rows of weight 0, have no part in value or gradient.
"""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    count_tokens,
    shifted,
    sum_tokens,
    text_average,
    token_average,
)

Reduction = Literal["token", "sequence_sum", "sequence_mean"]


def nll(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    reduction: Reduction = "token",
) -> tuple[Float[Array, ""], LossAux]:
    """Negative log-likelihood of the targets, in nats.

    Args:
      params: parameters to train.
      batch: the texts.
      apply_fn: the model.
      key: unused.
      reduction: "token" is the mean over all target tokens of the batch,
        "sequence_sum" the mean over texts of `S`, "sequence_mean" that of `A`.

    Source: the causal language-model loss; gradient descent on the retain set.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    return _reduce(values, mask, batch.weight, reduction)


def neg_nll(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    reduction: Reduction = "token",
) -> tuple[Float[Array, ""], LossAux]:
    """Gradient ascent: `-nll`, unbounded below.

    Use either this or a transformation that ascends, never both.

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model.
      key: unused.
      reduction: as for `nll`.

    Source: Knowledge Unlearning for Mitigating Privacy Risks (GA), arXiv 2210.01504;
    with a retain term GradDiff, arXiv 2203.12817.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    return _reduce(-values, mask, batch.weight, reduction)


def alternative_nll(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    reduction: Reduction = "token",
) -> tuple[Float[Array, ""], LossAux]:
    """Negative log-likelihood of what is to be said instead of the texts.

    With inverted facts this is MEOW, with random labels the forget term of SalUn, with
    refusals preference optimization without a preference (PO).

    Args:
      params: parameters to train.
      batch: texts with `alternative`; weights are those of the texts.
      apply_fn: the model.
      key: unused.
      reduction: as for `nll`.

    Returns:
      The value, and `LossAux` about the alternatives.

    Raises:
      ValueError: the batch has no alternative.

    Source: MEOW, arXiv 2409.11844; SalUn, arXiv 2310.12508; PO of TOFU, arXiv
    2401.06121.
    """
    alternative = _alternative(batch, "alternative_nll")
    values, mask = target_nll(params, alternative, apply_fn, batch.weight)
    return _reduce(values, mask, batch.weight, reduction)


def npo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 0.1,
) -> tuple[Float[Array, ""], LossAux]:
    """Negative preference optimization, `-(2/beta) mean log sigmoid(beta (S - S_ref))`.

    Where the model still is the reference it equals `(2/beta) log 2`, and its gradient
    is that of ascent on `S`; texts that are forgotten already weigh less.

    Args:
      params: parameters to train.
      batch: the texts to forget, with `reference_nll`.
      apply_fn: the model.
      key: unused.
      beta: inverse temperature; towards 0 it becomes gradient ascent.

    Raises:
      ValueError: the batch has no reference_nll.

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

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model.
      key: unused.
      beta: inverse temperature.
      delta: margin in nats a token; the paper's gamma divided by beta.

    Source: Simplicity Prevails (SimNPO), arXiv 2410.07163.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    tokens = count_tokens(mask)
    mean = sum_tokens(values, mask) / jnp.maximum(tokens, 1.0)
    return text_average(_preference(mean - delta, beta), tokens, batch.weight)


def dpo(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 0.1,
) -> tuple[Float[Array, ""], LossAux]:
    """Direct preference of the alternative over the text.

    `-(2/beta) mean log sigmoid(beta [(S_ref - S)(alternative) - (S_ref - S)(text)])`.
    With refusals as alternatives this is IdkDPO, with plausible answers AltPO. A text
    whose alternative has no target is left out.

    Args:
      params: parameters to train.
      batch: the texts to forget, with `alternative`, both with `reference_nll`.
      apply_fn: the model; called twice.
      key: unused.
      beta: inverse temperature.

    Returns:
      The value, and `LossAux` whose tokens are those of the texts to forget.

    Raises:
      ValueError: the batch has no alternative, or one of the two no reference_nll.

    Source: Direct Preference Optimization, arXiv 2305.18290, equation 7, scaled by
    2/beta as NPO; AltPO, arXiv 2409.13474.
    """
    alternative = _alternative(batch, "dpo")
    lost, mask = target_nll(params, batch, apply_fn, batch.weight)
    won, won_mask = target_nll(params, alternative, apply_fn, batch.weight)
    reference = reference_of(batch, mask, "dpo")
    won_reference = reference_of(alternative, won_mask, "dpo", "batch.alternative")
    margin = sum_tokens(won_reference - won, won_mask)
    margin = margin - sum_tokens(reference - lost, mask)
    tokens = jnp.where(won_mask.any(axis=1), count_tokens(mask), 0.0)
    return text_average(_preference(margin, beta), tokens, batch.weight)


def wga(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    beta: float = 1.0,
) -> tuple[Float[Array, ""], LossAux]:
    """Weighted gradient ascent, `-mean sg(p)^beta nll` over target tokens.

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model.
      key: unused.
      beta: exponent; 0 is gradient ascent.

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

    Args:
      params: parameters to train.
      batch: the texts to forget, with `reference_nll`.
      apply_fn: the model.
      key: unused.
      beta: the exponent b.

    Raises:
      ValueError: the batch has no reference_nll.

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

    Args:
      params: parameters to train.
      batch: the texts to forget, with `reference_nll`.
      apply_fn: the model.
      key: unused.
      beta: exponent of the ratio to the reference.
      alpha: exponent of the further factor.

    Raises:
      ValueError: the batch has no reference_nll.

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

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model.
      key: unused.
      beta1: exponent of the probability.
      beta2: exponent of its complement.

    Source: Exploring Criteria of Loss Reweighting (SatImp), arXiv 2505.11953.
    """
    values, mask = target_nll(params, batch, apply_fn, batch.weight)
    token_weight = jnp.exp(-beta1 * values) * (-jnp.expm1(-values)) ** beta2
    return _ascend(values, token_weight, mask, batch.weight)


def cached_reference_nll(
    params: PyTree, batch: TextBatch, *, apply_fn: ApplyFn
) -> Float[Array, "B T"]:
    """What `TextBatch.reference_nll` holds: -log p of each target, 0 elsewhere.

    Computed once over a data set with the parameters before unlearning. The weights of
    the batch have no influence. An alternative is a batch of its own:

        batch._replace(
            reference_nll=cached_reference_nll(theta0, batch, apply_fn=apply_fn),
            alternative=batch.alternative._replace(reference_nll=...),
        )

    Args:
      params: parameters of the reference.
      batch: the texts.
      apply_fn: the model.
    """
    values, _ = target_nll(params, batch, apply_fn, jnp.ones_like(batch.weight))
    return jax.lax.stop_gradient(values)


def target_nll(
    params: PyTree, batch: TextBatch, apply_fn: ApplyFn, weight: Float[Array, "B"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """-log p where a target is predicted, 0 elsewhere; and where that is.

    Args:
      params: parameters of the model.
      batch: the texts.
      apply_fn: the model.
      weight: rows of weight 0 have no targets.
    """
    ids, mask = shifted(batch, weight)
    logits = apply_fn(params, batch.input_ids).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    # Without this where, NaN on padding would reach the gradient as 0 * NaN. The true
    # token is read from the raw logits: masked ones would be written out for it.
    total = jax.nn.logsumexp(jnp.where(mask[..., None], logits, 0.0), axis=-1)
    return jnp.where(mask, total - chosen, 0.0), mask


def _reduce(
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    weight: Float[Array, "B"],
    reduction: Reduction,
) -> tuple[Float[Array, ""], LossAux]:
    match reduction:
        case "token":
            return token_average(values, mask, weight)
        case "sequence_sum":
            return text_average(sum_tokens(values, mask), count_tokens(mask), weight)
        case "sequence_mean":
            tokens = count_tokens(mask)
            mean = sum_tokens(values, mask) / jnp.maximum(tokens, 1.0)
            return text_average(mean, tokens, weight)
        case _:
            assert_never(reduction)


def _preference(margin: Float[Array, "B"], beta: float) -> Float[Array, "B"]:
    return -(2.0 / beta) * jax.nn.log_sigmoid(beta * margin)


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


def reference_of(
    batch: TextBatch,
    mask: Bool[Array, "B T"],
    objective: str,
    name: str = "batch",
) -> Float[Array, "B T"]:
    """`TextBatch.reference_nll` inside the mask, as data.

    Raises:
      ValueError: there is none; `objective` and `name` say where it is missing.
    """
    if batch.reference_nll is None:
        raise ValueError(
            f"{objective} needs {name}.reference_nll: compute it once with "
            "cached_reference_nll(reference_params, batch, apply_fn=apply_fn) and put "
            "it in with batch._replace(reference_nll=...)"
        )
    # Data, also when it was computed inside the differentiated function.
    reference = jax.lax.stop_gradient(batch.reference_nll).astype(jnp.float32)
    return jnp.where(mask, reference, 0.0)


def _alternative(batch: TextBatch, objective: str) -> TextBatch:
    if batch.alternative is None:
        raise ValueError(
            f"{objective} needs batch.alternative: a TextBatch of as many rows with "
            "what is to be said instead, put in with batch._replace(alternative=...)"
        )
    rows, found = batch.input_ids.shape[0], batch.alternative.input_ids.shape[0]
    if rows != found:
        raise ValueError(f"batch.alternative has {found} rows; expected {rows}")
    return batch.alternative
