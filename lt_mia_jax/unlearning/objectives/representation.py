"""Objectives on the residual stream: representation misdirection (RMU).

Streams are numbered as in `LanguageModel.apply`: n is the stream after n layers, 0 the
embedding. Papers and their code number modules from 0, so that their "layer 7", the
output of the eighth layer, is number 8 here.

Nothing is predicted, so nothing is shifted: a target token counts at its own position.
The logits are not read, and the output matrix is not even multiplied under `jit`.
"""

from typing import Literal, assert_never

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

    Mean over the target tokens of the batch and the dimensions. The released code for
    batches instead multiplies the mean of sums with the mean of inverse counts, which
    depends on what else is in the batch.

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model, called with `capture`.
      control: unit vector, the same for the whole run: `control_vector`.
      key: unused; the draw is `control_vector`'s.
      layer: number of layers that the stream has passed.
      steering: length of the vector aimed at; published 2 (TOFU), 6.5 and 20 (WMDP).

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
    """`rmu` whose aim at each token is as long as the reference's stream there.

    The aim is `steering * |h_ref| * control`, so that one coefficient serves all layers
    and models, whose streams differ in length.

    Args:
      params: parameters to train.
      batch: the texts to forget.
      apply_fn: the model, called with `capture`.
      control: unit vector, the same for the whole run: `control_vector`.
      reference_params: parameters of the reference; they take no gradient.
      key: unused; the draw is `control_vector`'s.
      layer: number of layers that the stream has passed.
      steering: length of the aim beside that of the reference's stream.

    Source: On Effects of Steering Latent Representation for Large Language Model
    Unlearning (Adaptive RMU), arXiv 2408.06223, over target tokens.
    """
    stream = _stream(params, batch, apply_fn, layer)
    frozen = jax.lax.stop_gradient(reference_params)
    before = _stream(frozen, batch, apply_fn, layer)
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

    Args:
      params: parameters to train.
      batch: the texts to keep.
      apply_fn: the model, called with `capture`.
      reference_params: parameters of the reference; they take no gradient.
      key: unused.
      layer: number of layers that the stream has passed.

    Source: The WMDP Benchmark (RMU), arXiv 2403.03218, over target tokens.
    """
    stream = _stream(params, batch, apply_fn, layer)
    frozen = jax.lax.stop_gradient(reference_params)
    return _mean_square(stream, _stream(frozen, batch, apply_fn, layer), batch)


def control_vector(
    key: Key[Array, ""],
    width: int,
    kind: Literal["isotropic", "positive"] = "isotropic",
) -> Float[Array, "width"]:
    """A random unit vector, the direction that `rmu` steers to.

    Args:
      key: the same on all hosts and for the whole run.
      width: of the model.
      kind: "isotropic" is uniform on the sphere; "positive" normalizes uniform draws
        from [0, 1), as the published runs: all of those lie within about 30 degrees
        of the all-ones direction.

    Source: "positive": the implementation of RMU, arXiv 2403.03218.
    """
    match kind:
        case "isotropic":
            draw = jax.random.normal(key, (width,))
        case "positive":
            draw = jax.random.uniform(key, (width,))
        case _:
            assert_never(kind)
    return draw / jnp.linalg.norm(draw)


def _stream(
    params: PyTree, batch: TextBatch, apply_fn: ApplyFn, layer: int
) -> Float[Array, "B T D"]:
    _, streams = apply_fn(params, batch.input_ids, capture=(layer,))
    return streams[layer].astype(jnp.float32)


def _mean_square(
    stream: Float[Array, "B T D"],
    aim: Float[Array, "#B #T D"],
    batch: TextBatch,
) -> tuple[Float[Array, ""], LossAux]:
    mask: Bool[Array, "B T"] = batch.label_mask != 0
    mask = mask & (batch.weight != 0)[:, None]
    # Outside the mask anything may stand, NaN included; it must not be squared.
    distance = jnp.where(mask[..., None], stream - aim, 0.0)
    return token_average((distance**2).mean(axis=-1), mask, batch.weight)
