"""Losses of a student that imitates a teacher's streams and predictions (BiStil).

Source: "Distilling Efficient Language-Specific Models for Cross-Lingual Transfer"
(BiStil). Kept: the squared error of hidden states and the soft cross-entropy at
temperature 2, without the usual factor T^2, and their equal weights. Not kept: the
squared error of attention scores; a model returns its residual streams only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Params


class Outputs(NamedTuple):
    """What teacher and student are compared by."""

    logits: Float[Array, "B T V"]
    """Over the same tokens in both."""
    hidden: tuple[Float[Array, "B T D"], ...]
    """Streams of matched layers, in one order; widths are equal."""


class Weights(NamedTuple):
    """Factors on the terms of `distil_loss`; 1 each in the paper."""

    hidden: float | Float[Array, ""] = 1.0
    soft: float | Float[Array, ""] = 1.0
    """0 in the paper's first phase."""


def outputs(
    model: Any, params: Params, input_ids: Int[Any, "B T"], layers: Sequence[int]
) -> Outputs:
    """Logits and streams of a model, for one side of `distil_loss`.

    `layers` are such as one side of `weightspace.trim.matched_layers`.
    """
    logits, streams = model.apply(params, input_ids, capture=tuple(layers))
    return Outputs(logits, tuple(streams[layer] for layer in layers))


def distil_loss(
    t_out: Outputs,
    s_out: Outputs,
    weights: Weights = Weights(),  # noqa: B008
    *,
    mask: Bool[Array | np.ndarray, "B T"] | None = None,
    temperature: float = 2.0,
) -> Float[Array, ""]:
    """How far a student is from its teacher; no gradient flows to the teacher.

    `weights.hidden * MSE(hidden) + weights.soft * CE`, with CE the cross-entropy of
    softmax(student / T) under softmax(teacher / T), in nats a token, not multiplied by
    T^2. The mask is False on padding. Sides that differ in the number of streams, their
    width or the vocabulary raise a ValueError.

    Example:
      >>> one = Outputs(jnp.zeros((1, 1, 4)), (jnp.ones((1, 1, 2)),))
      >>> other = Outputs(jnp.zeros((1, 1, 4)), (jnp.zeros((1, 1, 2)),))
      >>> round(float(distil_loss(one, other)), 4)  # 1 + log(4)
      2.3863
    """
    shapes = [[x.shape for x in (out.logits, *out.hidden)] for out in (t_out, s_out)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"teacher {shapes[0]} and student {shapes[1]} differ")
    t_out = jax.lax.stop_gradient(t_out)
    shape = t_out.logits.shape[:2]
    where = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    total = jnp.zeros(())
    for teacher, student in zip(t_out.hidden, s_out.hidden, strict=True):
        gap = jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32))
        mean = jnp.mean(gap, where=where[..., None])
        total = total + weights.hidden * mean / len(s_out.hidden)
    target = jax.nn.softmax(t_out.logits / temperature)
    soft = -(target * jax.nn.log_softmax(s_out.logits / temperature)).sum(axis=-1)
    return total + weights.soft * jnp.mean(soft, where=where)
