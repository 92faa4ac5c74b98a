"""Objectives on the residual stream: representation misdirection (RMU).

The residual stream after n layers has number n; 0 is the embedding. Papers number
modules from 0: their "layer 7", the output of the eighth layer, is number 8 here.

Nothing is predicted, so nothing is shifted: a target token counts at its own position.
The logits are not read, and under `jit` not computed. `apply_fn` is called with
`capture`; `reference_params`, those of the reference model, take no gradient. `layer`
is the number of the stream, and `control` a unit vector that stays the same in the
whole run (`control_vector`).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Key, PyTree
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    TextBatch,
    token_average,
)


def rmu(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    control: Float[Array, "D"],
    key: Key[Array, ""] | None = None,
    layer: int = 8,
    steering: float = 2.0,
) -> tuple[Float[Array, ""], LossAux]:
    """Squared distance of the stream to `steering * control`.

    The mean over target tokens and dimensions. The released code instead multiplies the
    mean of sums by the mean of inverse counts, so that texts of a batch interact.

    Settings:
      steering: length of the target; published 2 (TOFU), 6.5 and 20 (WMDP).

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model = lambda params, ids, capture: (None, {capture[0]: params})
      >>> stream, unit = jnp.zeros((1, 3, 2)), jnp.array([1.0, 0.0])
      >>> value, aux = rmu(stream, batch, apply_fn=model, control=unit, steering=2.0)
      >>> float(value)  # the mean of 4 and 0
      2.0

    Source: The WMDP Benchmark (RMU), arXiv 2403.03218, over target tokens.
    """
    stream = _stream(params, batch, apply_fn, layer)
    aim = steering * jax.lax.stop_gradient(control).astype(jnp.float32)
    return _mean_square(stream, aim[None, None, :], batch)


def adaptive_rmu(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    control: Float[Array, "D"],
    reference_params: PyTree,
    key: Key[Array, ""] | None = None,
    layer: int = 8,
    steering: float = 5.0,
) -> tuple[Float[Array, ""], LossAux]:
    """`rmu` with the target `steering * |h_ref| * control` at each token.

    One coefficient serves all layers and models, although their streams differ in norm.

    Settings:
      steering: length of the target, in norms of the reference's stream.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model = lambda params, ids, capture: (None, {capture[0]: params})
      >>> stream, unit = jnp.zeros((1, 3, 2)), jnp.array([1.0, 0.0])
      >>> data = {"control": unit, "reference_params": stream + 1.0}
      >>> value, aux = adaptive_rmu(stream, batch, apply_fn=model, steering=2.0, **data)
      >>> round(float(value), 3)  # the target is 2 * sqrt(2) long
      4.0

    Source: On Effects of Steering Latent Representation for Large Language Model
    Unlearning (Adaptive RMU), arXiv 2408.06223, over target tokens.
    """
    stream = _stream(params, batch, apply_fn, layer)
    before = _stream(jax.lax.stop_gradient(reference_params), batch, apply_fn, layer)
    length = jnp.linalg.norm(before, axis=-1, keepdims=True)
    unit = jax.lax.stop_gradient(control).astype(jnp.float32)
    return _mean_square(stream, steering * length * unit[None, None, :], batch)


def rmu_retain(
    params: PyTree,
    batch: TextBatch,
    *,
    apply_fn: ApplyFn,
    reference_params: PyTree,
    key: Key[Array, ""] | None = None,
    layer: int = 8,
) -> tuple[Float[Array, ""], LossAux]:
    """Squared distance of the stream to that of the reference.

    Example:
      >>> ids = jnp.array([[0, 1, 2]])
      >>> batch = TextBatch(ids, ids >= 0, ids >= 0, jnp.ones(1))
      >>> model = lambda params, ids, capture: (None, {capture[0]: params})
      >>> stream, base = jnp.zeros((1, 3, 2)), jnp.full((1, 3, 2), 2.0)
      >>> value, aux = rmu_retain(stream, batch, apply_fn=model, reference_params=base)
      >>> float(value)
      4.0

    Source: The WMDP Benchmark (RMU), arXiv 2403.03218, over target tokens.
    """
    stream = _stream(params, batch, apply_fn, layer)
    aim = _stream(jax.lax.stop_gradient(reference_params), batch, apply_fn, layer)
    return _mean_square(stream, aim, batch)


def control_vector(
    key: Key[Array, ""],
    width: int,
    kind: Literal["isotropic", "positive"] = "isotropic",
) -> Float[Array, "width"]:
    """A random unit vector for `rmu` to steer to.

    Args:
      key: the same on all hosts and for the whole run.
      width: of the model.
      kind: "isotropic" is uniform on the sphere; "positive" normalizes uniform draws
        from [0, 1), as published: they all lie within about 30 degrees of the
        all-ones direction.

    Example:
      >>> control = control_vector(jax.random.key(0), 16)
      >>> round(float(jnp.linalg.norm(control)), 3)
      1.0

    Source: "positive": the implementation of RMU, arXiv 2403.03218.
    """
    draws = {"isotropic": jax.random.normal, "positive": jax.random.uniform}
    draw = draws[kind](key, (width,))
    return draw / jnp.linalg.norm(draw)


def _stream(
    params: PyTree, batch: TextBatch, apply_fn: ApplyFn, layer: int
) -> Float[Array, "B T D"]:
    _, streams = apply_fn(params, batch.input_ids, capture=(layer,))
    return streams[layer].astype(jnp.float32)


def _mean_square(
    stream: Float[Array, "B T D"], aim: Float[Array, "#B #T D"], batch: TextBatch
) -> tuple[Float[Array, ""], LossAux]:
    mask: Bool[Array, "B T"] = batch.label_mask != 0
    mask = mask & (batch.weight != 0)[:, None]
    # Outside the mask anything may stand, NaN included; it must not be squared.
    distance = jnp.where(mask[..., None], stream - aim, 0.0)
    return token_average((distance**2).mean(axis=-1), mask, batch.weight)
