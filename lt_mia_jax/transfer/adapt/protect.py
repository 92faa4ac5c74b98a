"""Protect what a model knows: pulls, damping and masks from Fisher information.

All read the diagonal Fisher information of the protected task, a tree that mirrors the
parameters (`training.fisher`, which has its running sum and the damage of an update).
Settings out of range raise an `InputError`. `training.transforms.anchor.ewc_pull` is
elastic weight consolidation as published; `training.transforms.mask.mask_updates`
freezes what a mask leaves out.

Source: PSMT (see `adapt.psmt`), but for `fisher_damp`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.errors import NOT_NEGATIVE, UNIT, check_ranges
from lt_mia_jax.training.threshold import top_share_mask
from lt_mia_jax.training.transforms.anchor import ewc_pull, running_mean
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    at_params,
    transformation,
)
from lt_mia_jax.trees import parameter_count


@transformation("params")
def fisher_pull(
    fisher: Tree, anchor: Tree | None, lam: float
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of `lam * sum F (params - anchor)^2`: `ewc_pull` of `2 lam`.

    Without an anchor it is the argument of `init`. Place it in front of the optimizer.

    Example:
      >>> tx = fisher_pull(jnp.array([1.0, 0.0]), jnp.zeros(2), lam=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.zeros(2), tx.init(params), params)[0]
      Array([3., 0.], dtype=float32)

    Source: PSMT, arXiv 2407.02253.
    """
    check_ranges("fisher_pull", lam=(lam, NOT_NEGATIVE))
    return ewc_pull(2 * lam, anchor, fisher)


@transformation()
def fisher_damp(fisher: Tree, c: float) -> optax.GradientTransformationExtraArgs:
    """Divide each update by `1 + c F / mean(F)`, the mean over all trained weights.

    Axes of `F` may be 1. Place it behind the optimizer, which would undo a constant
    factor on gradients. The state is a tree of the reciprocals, float32.

    Example:
      >>> tx = fisher_damp(jnp.array([0.0, 2.0]), c=0.5)
      >>> tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))[0]
      Array([1. , 0.5], dtype=float32)

    Source: ours, after Learning With Forgetting's Fisher-weighted updates.
    """
    check_ranges("fisher_damp", c=(c, NOT_NEGATIVE))

    def init(params: Tree) -> Tree:
        placed = at_params(fisher, params, jnp.float32)
        # The mean of each leaf first: axes of size 1 stand for whole axes.
        share = jax.tree.map(lambda x: x.size / parameter_count(params), params)
        weighted = jax.tree.map(lambda s, f: s * jnp.mean(f), share, placed)
        mean = jnp.asarray(sum(jax.tree.leaves(weighted)), jnp.float32)
        scale = jnp.where(mean > 0, c / jnp.where(mean > 0, mean, 1.0), 0.0)
        return jax.tree.map(lambda f: 1.0 / (1.0 + scale * f), placed)

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        def damped(u: Any, factor: Any) -> Any:
            return (u.astype(jnp.float32) * factor).astype(u.dtype)

        return jax.tree.map(damped, updates, state), state

    return optax.GradientTransformationExtraArgs(init, update)


def fisher_mask(fisher: Tree, q: float) -> Tree:
    """True on what is protected: the `1 - q` share of weights with the largest `F`.

    The threshold is exact and of the whole tree; ties at it are protected. Weights
    whose `F` is 0 never are.

    Example:
      >>> fisher_mask({"w": jnp.array([0.1, 3.0, 0.2, 0.0])}, q=0.75)
      {'w': Array([False,  True, False, False], dtype=bool)}
    """
    check_ranges("fisher_mask", q=(q, UNIT))
    top = top_share_mask(fisher, 1.0 - q)
    return jax.tree.map(lambda t, f: t & (f > 0), top, fisher)


def masked_ema(teacher: Tree, student: Tree, mask: Tree, eta: float = 0.999) -> Tree:
    """The running mean `eta t + (1 - eta) s`; where the mask is True, `t` bit for bit.

    The mask of `ema_teacher` is the other way round: what moves. Results have the
    teacher's dtypes.

    Example:
      >>> masked_ema(jnp.zeros(2), jnp.ones(2), jnp.array([True, False]), eta=0.75)
      Array([0.  , 0.25], dtype=float32)
    """
    check_ranges("masked_ema", eta=(eta, UNIT))
    return running_mean(teacher, student, eta, jax.tree.map(jnp.logical_not, mask))
