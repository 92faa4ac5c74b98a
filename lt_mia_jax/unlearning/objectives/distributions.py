"""Objectives on whole predicted distributions, computed in blocks to bound memory.

`reference_params` are the parameters of the reference model. They take no gradient;
they cost a forward pass per step and one more array of the size of the logits. `block`
is the number of positions of every text at a time; it changes memory, not results.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    shifted,
    token_average,
)

BLOCK = 64
Logits = Float[Array, "B T V"]


def kl_to_reference(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    reference_params: PyTree,
    key: Key[Array, ""] | None = None,
    block: int = BLOCK,
) -> tuple[Float[Array, ""], LossAux]:
    """KL(reference || model) in nats, mean over the positions that predict targets.

    The usual implementation averages over padding and prompt as well.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = {"new": jnp.zeros((1, 3, 4)), "old": jnp.eye(4)[None, :3]}
      >>> value, aux = kl_to_reference(
      ...     logits["new"],
      ...     batch,
      ...     apply_fn=lambda params, ids: params,
      ...     reference_params=logits["old"],
      ... )
      >>> round(float(value), 3)
      0.118

    Source: the KL retain term of TOFU, arXiv 2401.06121.
    """

    def term(ids: Int[Array, "B T"], z: Logits, z_ref: Logits) -> Float[Array, "B T"]:
        reference = jax.nn.log_softmax(z_ref)
        # Masked entries, of logit -inf, add nothing: 0 log 0 is 0.
        possible = reference > -jnp.inf
        ratio = jnp.where(possible, reference - jax.nn.log_softmax(z), 0.0)
        return (jnp.exp(reference) * ratio).sum(axis=-1)

    logits = apply_fn(params, batch.input_ids)
    reference = _reference_logits(reference_params, batch, apply_fn)
    return _average_over_blocks(term, batch, block, 0, logits, reference)


def undial(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    reference_params: PyTree,
    key: Key[Array, ""] | None = None,
    beta: float = 10.0,
    block: int = BLOCK,
) -> tuple[Float[Array, ""], LossAux]:
    """Cross-entropy to the reference with the logit of the true token lowered by beta.

    Settings:
      beta: subtracted from the reference's logit of the target.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model, flat = (lambda params, ids: params), jnp.zeros((1, 3, 4))
      >>> value, aux = undial(flat, batch, apply_fn=model, reference_params=flat)
      >>> round(float(value), 3)  # of a flat prediction, whatever the target
      1.386

    Source: UNDIAL, arXiv 2402.10052 (self-distillation with adjusted logits), averaged
    over target tokens where the released code averages over padding too.
    """

    def term(ids: Int[Array, "B T"], z: Logits, z_ref: Logits) -> Float[Array, "B T"]:
        lowered = jnp.where(_is_target(ids, z), z_ref - beta, z_ref)
        return _cross_entropy(jax.nn.softmax(lowered), z)

    logits = apply_fn(params, batch.input_ids)
    reference = _reference_logits(reference_params, batch, apply_fn)
    return _average_over_blocks(term, batch, block, 0, logits, reference)


def ce_u(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
    skip: int = 1,
    block: int = BLOCK,
) -> tuple[Float[Array, ""], LossAux]:
    """Cross-entropy to the model's own prediction without the true token.

    The gradient on the logits is `p - q`, with q the prediction renormalized over the
    other tokens: bounded, unlike that of ascent.

    Settings:
      skip: number of leading target tokens of each text that are left out.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.zeros((1, 3, 4))
      >>> value, aux = ce_u(logits, batch, apply_fn=lambda params, ids: params)
      >>> f"{value:.3f} over {aux.tokens[0]:.0f} token"  # the first target is skipped
      '1.386 over 1 token'

    Source: CE-U, arXiv 2503.01224.
    """

    def term(ids: Int[Array, "B T"], z: Logits) -> Float[Array, "B T"]:
        others = jnp.where(_is_target(ids, z), -jnp.inf, jax.lax.stop_gradient(z))
        return _cross_entropy(jax.nn.softmax(others), z)

    logits = apply_fn(params, batch.input_ids)
    return _average_over_blocks(term, batch, block, skip, logits)


def pdu_flatten(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, ""], LossAux]:
    """Mean over target tokens of `(max z - mean z)^2`, over the logits z.

    0 where the prediction is uniform. Masked entries (logit -inf) do not count. The
    released code reads the logits one position late.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> logits = jnp.array([[[4.0, 0, 0, 0]] * 3])
      >>> value, aux = pdu_flatten(logits, batch, apply_fn=lambda params, ids: params)
      >>> float(value)  # (4 - 1) squared
      9.0

    Source: Constrained Entropic Unlearning (PDU), arXiv 2506.05314.
    """
    _, mask = shifted(batch)
    logits = apply_fn(params, batch.input_ids).astype(jnp.float32)
    # Two plain reductions, which blocks would not make smaller.
    logits = jnp.where(mask[..., None], logits, 0.0)
    height = logits.max(axis=-1) - logits.mean(axis=-1, where=logits > -jnp.inf)
    return token_average(height**2, mask, batch.weight)


def _reference_logits(
    reference_params: PyTree, batch: TextBatch, apply_fn: ApplyFn
) -> Logits:
    return apply_fn(jax.lax.stop_gradient(reference_params), batch.input_ids)


def _is_target(ids: Int[Array, "B T"], logits: Logits) -> Bool[Array, "B T V"]:
    # A comparison fuses into whatever reads it; a one-hot array would be written out.
    positions = jax.lax.broadcasted_iota(ids.dtype, logits.shape, 2)
    return positions == ids[..., None]


def _cross_entropy(q: Logits, logits: Logits) -> Float[Array, "B T"]:
    # sum q = 1, so the normalizer of log p comes out of the sum. A masked entry has the
    # logit -inf, and q = 0.
    expected = jnp.where(q > 0, q * logits, 0.0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def _average_over_blocks(
    term: Callable[..., Float[Array, "B T"]],
    batch: TextBatch,
    block: int,
    skip: int,
    *logits: Logits,
) -> tuple[Float[Array, ""], LossAux]:
    """Token average of `term(ids, *logits)`, computed `block` steps at a time.

    Blocks run over the steps of all texts at once and not over rows of a flattened
    batch: with the batch sharded, a loop over rows would gather all logits on every
    device.
    """
    if block < 1:
        raise ValueError(f"block is {block}; expected at least 1 step")
    ids, mask = shifted(batch)
    mask = mask & (jnp.cumsum(mask, axis=1) > skip)

    # Recomputed in the backward pass: only the logits themselves are kept.
    @jax.checkpoint
    def visit(ids: Array, mask: Array, *pieces: Array) -> Float[Array, "B T"]:
        # NaN on padding must not enter: not even a gradient of 0 survives it.
        inside = mask[..., None]
        return term(ids, *(jnp.where(inside, x.astype(jnp.float32), 0) for x in pieces))

    values = _over_steps(visit, block, ids, mask, *logits)
    return token_average(values, mask, batch.weight)


def _over_steps(
    visit: Callable[..., Float[Array, "B T"]], block: int, *arrays: Array
) -> Float[Array, "B T"]:
    """`visit(*arrays)` on at most `block` columns at a time."""
    rows, steps = arrays[0].shape
    blocks = -(-steps // block)
    if blocks <= 1:
        return visit(*arrays)
    per_block = -(-steps // blocks)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, blocks * per_block - steps)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(rows, blocks, per_block, *x.shape[2:]), 1, 0)

    found = jax.lax.map(lambda piece: visit(*piece), tuple(map(split, arrays)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :steps]
