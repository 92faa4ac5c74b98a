"""Likelihood of the targets: descent, ascent, and other answers.

Below, `S` is the sum of -log p over the targets of a text, and `A` its mean. Texts
without targets, and rows of weight 0, contribute to neither value nor gradient.
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
    mean_tokens,
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

    Settings:
      reduction: "token" is the mean over all target tokens of the batch,
        "sequence_sum" the mean over texts of `S`, "sequence_mean" that of `A`.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.zeros((1, 3, 4))  # uniform over 4 tokens
      >>> value, aux = nll(logits, batch, apply_fn=lambda params, ids: params)
      >>> f"{value:.3f} nats per token, {aux.tokens[0]:.0f} tokens"
      '1.386 nats per token, 2 tokens'

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

    Use either this or `transforms.ascend`, never both.

    Settings:
      reduction: as for `nll`.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = neg_nll(logits, batch, apply_fn=lambda params, ids: params)
      >>> round(float(value), 3)
      -1.386

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
    """Negative log-likelihood of the alternative answers.

    With inverted facts this is MEOW, with random labels the forget term of SalUn, with
    refusals preference optimization without a preference (PO).

    Settings:
      reduction: as for `nll`.

    The weights are those of the texts; `LossAux` is about the alternatives.

    Raises:
      ValueError: the batch has no alternative.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> batch = batch._replace(alternative=batch._replace(input_ids=ids[:, ::-1]))
      >>> model = lambda params, ids: jnp.zeros((1, 3, 4))
      >>> value, aux = alternative_nll(None, batch, apply_fn=model)
      >>> round(float(value), 3)
      1.386

    Source: MEOW, arXiv 2409.11844; SalUn, arXiv 2310.12508; PO of TOFU, arXiv
    2401.06121.
    """
    alternative = alternative_of(batch, "alternative_nll")
    values, mask = target_nll(params, alternative, apply_fn, batch.weight)
    return _reduce(values, mask, batch.weight, reduction)


def cached_reference_nll(
    params: PyTree, batch: TextBatch, *, apply_fn: ApplyFn
) -> Float[Array, "B T"]:
    """`TextBatch.reference_nll`: -log p of each target, 0 elsewhere.

    Compute it once over a data set with the parameters before unlearning. An
    alternative is a batch of its own. Weights have no influence.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model = lambda params, ids: jnp.zeros((1, 3, 4))
      >>> reference = cached_reference_nll(None, batch, apply_fn=model)
      >>> batch._replace(reference_nll=reference).reference_nll.round(3)
      Array([[1.386, 1.386, 0.   ]], dtype=float32)
    """
    values, _ = target_nll(params, batch, apply_fn, jnp.ones_like(batch.weight))
    return jax.lax.stop_gradient(values)


def target_nll(
    params: PyTree, batch: TextBatch, apply_fn: ApplyFn, weight: Float[Array, "B"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """-log p where a target is predicted, 0 elsewhere; and the mask of these positions.

    Rows of `weight` 0 have no targets.
    """
    ids, mask = shifted(batch, weight)
    logits = apply_fn(params, batch.input_ids).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    # Without this where, NaN on padding would reach the gradient as 0 * NaN. The true
    # token is read from the raw logits: masked ones would be written out for it.
    total = jax.nn.logsumexp(jnp.where(mask[..., None], logits, 0.0), axis=-1)
    return jnp.where(mask, total - chosen, 0.0), mask


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


def alternative_of(batch: TextBatch, objective: str) -> TextBatch:
    """`TextBatch.alternative`.

    Raises:
      ValueError: there is none, or it has another number of rows.
    """
    if batch.alternative is None:
        raise ValueError(
            f"{objective} needs batch.alternative: a TextBatch of as many rows with "
            "the answers to learn instead, put in with batch._replace(alternative=...)"
        )
    rows, found = batch.input_ids.shape[0], batch.alternative.input_ids.shape[0]
    if rows != found:
        raise ValueError(f"batch.alternative has {found} rows; expected {rows}")
    return batch.alternative


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
            return text_average(mean_tokens(values, mask), count_tokens(mask), weight)
        case _:
            assert_never(reduction)
