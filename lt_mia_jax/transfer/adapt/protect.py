"""Protect what a model knows: pulls, damping and masks from Fisher information.

All of them read one tree, the diagonal Fisher information of the protected task
(`training.fisher.diagonal_fisher`: squared gradients of single texts), which mirrors
the parameters. `training.transforms.anchor.ewc_pull` is elastic weight consolidation
as published; `training.transforms.mask.mask_updates` freezes what a mask leaves out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import NOT_NEGATIVE, UNIT, check_ranges
from lt_mia_jax.training.fisher import float32
from lt_mia_jax.training.threshold import top_share_mask
from lt_mia_jax.training.transforms.anchor import ewc_pull, running_mean
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    at_params,
    transformation,
)
from lt_mia_jax.training.transforms.products import add, dot


@transformation("params")
def fisher_pull(
    fisher: Tree, anchor: Tree | None, lam: float
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of `lam * sum F (params - anchor)^2`.

    It is `ewc_pull` of strength `2 lam`. The Fisher information `F` and the anchor
    mirror the parameters; without an anchor it is the argument of `init`. Place it in
    front of the optimizer.

    Raises:
      InputError: `lam` is negative.

    Example:
      >>> tx = fisher_pull(jnp.array([1.0, 0.0]), jnp.zeros(2), lam=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.zeros(2), tx.init(params), params)[0]
      Array([3., 0.], dtype=float32)

    Source: Parameter-Selective Mean Teacher, the pull of its loss.
    """
    check_ranges("fisher_pull", lam=(lam, NOT_NEGATIVE))
    return ewc_pull(2 * lam, anchor, fisher)


class DampState(NamedTuple):
    """State of `fisher_damp`."""

    factor: Tree
    """What each update is multiplied by, float32, at most 1."""


@transformation()
def fisher_damp(fisher: Tree, c: float) -> optax.GradientTransformationExtraArgs:
    """Divide each update by `1 + c F / mean(F)`.

    A weight of average importance moves `1 + c` times less. The mean is over all
    weights that are trained. `F` mirrors the parameters; axes may be 1. Place it behind
    the optimizer, which would undo a constant factor on gradients.

    Raises:
      InputError: `c` is negative.

    Example:
      >>> tx = fisher_damp(jnp.array([0.0, 2.0]), c=0.5)
      >>> tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))[0]
      Array([1. , 0.5], dtype=float32)

    Source: Learning With Forgetting weighs updates by Fisher information; this damping
    is our form of it.
    """
    check_ranges("fisher_damp", c=(c, NOT_NEGATIVE))

    def init(params: Tree) -> DampState:
        placed = at_params(fisher, params, jnp.float32)
        sizes = [x.size for x in jax.tree.leaves(params)]
        # The mean of each leaf first: axes of size 1 stand for whole axes.
        means = [jnp.mean(x) for x in jax.tree.leaves(placed)]
        weighted = [n / sum(sizes) * m for n, m in zip(sizes, means, strict=True)]
        mean = jnp.asarray(sum(weighted), jnp.float32)
        scale = jnp.where(mean > 0, c / jnp.where(mean > 0, mean, 1.0), 0.0)
        return DampState(jax.tree.map(lambda f: 1.0 / (1.0 + scale * f), placed))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        damped = jax.tree.map(
            lambda u, factor: (u.astype(jnp.float32) * factor).astype(u.dtype),
            updates,
            state.factor,
        )
        return damped, state

    return optax.GradientTransformationExtraArgs(init, update)


def dmg(update: Tree, fisher: Tree) -> Float[Array, ""]:
    """What an update costs the protected task: `0.5 sum F u^2`, in nats.

    The second-order estimate of the rise of the task's loss, at a minimum of it.

    Example:
      >>> dmg(jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0]))
      Array(2., dtype=float32)

    Source: Elastic weight consolidation, arXiv 1612.00796 (Laplace approximation).
    """
    square = jax.tree.map(lambda u: jnp.square(u.astype(jnp.float32)), update)
    return 0.5 * dot(fisher, square)


def running_fisher(fisher: Tree | None, new: Tree, decay: float = 0.9) -> Tree:
    """`decay * fisher + new`, float32: the information of all tasks so far.

    None stands for no earlier task.

    Raises:
      InputError: `decay` is outside [0, 1].

    Example:
      >>> running_fisher(jnp.array([10.0]), jnp.array([1.0]))
      Array([10.], dtype=float32)

    Source: elastic weight consolidation as in LIBERO (decay 0.9).
    """
    check_ranges("running_fisher", decay=(decay, UNIT))
    return float32(new) if fisher is None else add(float32(new), decay, fisher)


def fisher_mask(fisher: Tree, q: float) -> Tree:
    """True on what is protected: the `1 - q` share of weights with the largest `F`.

    The threshold is exact and of the whole tree; ties at it are protected. A weight
    whose `F` is 0 is never protected, whatever `q` is.

    Raises:
      InputError: `q` is outside [0, 1].

    Example:
      >>> fisher_mask({"w": jnp.array([0.1, 3.0, 0.2, 0.0])}, q=0.75)
      {'w': Array([False,  True, False, False], dtype=bool)}

    Source: Parameter-Selective Mean Teacher.
    """
    check_ranges("fisher_mask", q=(q, UNIT))
    top = top_share_mask(fisher, 1.0 - q)
    return jax.tree.map(lambda t, f: t & (f > 0), top, fisher)


def masked_ema(teacher: Tree, student: Tree, mask: Tree, eta: float = 0.999) -> Tree:
    """The teacher's running mean, `eta t + (1 - eta) s`, but where the mask is True.

    There the teacher keeps its own weights, bit for bit. (The mask of `ema_teacher` is
    the other way round: what moves.) Results have the teacher's dtypes.

    Raises:
      InputError: `eta` is outside [0, 1].

    Example:
      >>> mask = jnp.array([True, False])
      >>> masked_ema(jnp.zeros(2), jnp.ones(2), mask, eta=0.75)
      Array([0.  , 0.25], dtype=float32)

    Source: Parameter-Selective Mean Teacher.
    """
    check_ranges("masked_ema", eta=(eta, UNIT))
    return running_mean(teacher, student, eta, jax.tree.map(jnp.logical_not, mask))
