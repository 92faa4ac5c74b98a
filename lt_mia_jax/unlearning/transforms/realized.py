"""The step that the optimizer really takes does not raise the retain loss.

A projection in front of an optimizer says little about its step: momentum brings old
gradients back, Adam changes the metric and weight decay adds what no gradient saw. Here
the finished step is corrected, as little as possible in the optimizer's own metric.
"""

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    numbers,
    require_choice,
    require_same_tree,
    transformation,
)
from lt_mia_jax.training.transforms.mask import MaskState
from lt_mia_jax.training.transforms.products import (
    above_rounding,
    add,
    combination,
    cosine,
    dot,
    gram,
    products,
    solve,
    squared_norms,
    unit_diagonal,
)

LARGEST = 9  # all 2^k sets of active constraints are tried


class RealizedState(NamedTuple):
    """State of `project_realized_update`."""

    inner: Any
    """State of the wrapped optimizer."""
    monitored: dict[str, Array]
    """Largest cosine of a retain gradient with the optimizer's own step (positive: the
    step would have raised that retain loss), and the largest multiplier."""


@transformation("retain_grads")
def project_realized_update(
    inner: optax.GradientTransformation,
    *,
    size: int = 1,
    form: Literal["inequality", "equality"] = "inequality",
    damping: float = 1e-6,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Correct the step of `inner` so that, to first order, no retain loss rises.

    With `D0` the step of `inner` (learning rate, momentum and weight decay included),
    the result is the `D` nearest to it, in the norm `sum M (D - D0)^2`, among those
    with `<r_i, D> <= 0` for each retain gradient (or `= 0`). `M = sqrt(v) + eps` with
    Adam's bias-corrected second moment `v` when `inner` has one, else 1. Hence
    `D = D0 - M^-1 sum_i l_i r_i` with multipliers `l >= 0`. A `D0` that satisfies the
    inequalities is returned bit for bit. A retain gradient below a millionth of the
    forget gradient's length is rounding, and constrains nothing.

    Wrap the whole optimizer, and put `freeze` and `saliency_masked` around this, not
    inside: they mask the retain gradients too, so that the guarantee holds for the
    parameters that are trained.

    Args:
      inner: the optimizer. It gets all extra arguments, and the mean of the retain
        gradients as `retain_grads`.
      size: number of retain gradients, 1 to 9. With several, every set of active
        constraints is tried, in one batch of small systems.
      form: "inequality" lets the retain loss fall, "equality" keeps it constant.
      damping: added to the Gram matrix of several gradients, scaled to a unit diagonal.
      b2: Adam's decay of the second moment, for its bias correction.
      eps: Adam's epsilon.

    Returns:
      A transformation whose `retain_grads` mirror the gradients, with `size` of them on
      a leading axis (which may be absent for 1).

    Raises:
      ValueError: `size` is not in 1..9; at `init`, a mask is inside.

    Example:
      >>> forget, retain = jnp.array([1.0, -1.0]), jnp.array([0.0, 2.0])
      >>> tx = project_realized_update(optax.sgd(1.0))
      >>> tx.update(forget, tx.init(forget), retain_grads=retain)[0]  # sgd: [-1, 1]
      Array([-1.,  0.], dtype=float32)

    Source: the realized-step form of Geometric unlearning (arXiv 2511.17100), a
    projection onto a polyhedral cone; optimality by its Karush-Kuhn-Tucker conditions.
    """
    require_choice("project_realized_update", "form", form, ("inequality", "equality"))
    if not 1 <= size <= LARGEST:
        raise ValueError(
            f"project_realized_update: size = {size}, expected 1 to {LARGEST} retain "
            "gradients"
        )
    inner = optax.with_extra_args_support(inner)
    equality = form == "equality"

    def is_mask(x: Any) -> bool:
        return isinstance(x, MaskState)

    def init(params: Tree) -> RealizedState:
        state = inner.init(params)
        if any(map(is_mask, jax.tree.leaves(state, is_leaf=is_mask))):
            raise ValueError(
                "project_realized_update would move masked parameters again; put "
                "saliency_masked or fisher_masked around it"
            )
        return RealizedState(state, numbers("realized_update", cosine=0, multiplier=0))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        stack = _stacked(extra["retain_grads"], updates, size)
        mean = jax.tree.map(lambda r: r.mean(axis=0) if size > 1 else r[0], stack)
        extra["retain_grads"] = mean
        step, inner_state = inner.update(updates, state.inner, params, **extra)
        moment = second_moment(inner_state, b2=b2)
        inverse = None
        if moment is not None:
            require_same_tree("project_realized_update", "nu", moment, updates)
            inverse = jax.tree.map(lambda v: 1.0 / (jnp.sqrt(v) + eps), moment)
        # Without products the multipliers of rounding are 0, and it drops out.
        lengths = squared_norms(stack)
        kept = above_rounding(lengths, dot(updates, updates)).astype(jnp.float32)
        b = products(stack, step)
        k = gram(stack, inverse) * kept[:, None] * kept[None]
        if size == 1:
            positive = k[0] > 0
            multipliers = jnp.where(positive, b / jnp.where(positive, k[0], 1.0), 0.0)
            if not equality:
                multipliers = jnp.maximum(multipliers, 0.0)
        elif equality:
            multipliers = solve(k, b, damping)
        else:
            multipliers = active_set(k, b, damping)
        correction = combination(multipliers, stack)
        if inverse is not None:
            correction = jax.tree.map(jnp.multiply, correction, inverse)
        result = add(step, -1.0, correction)
        worst = jnp.max(kept * cosine(b, lengths, dot(step, step)))
        found = numbers("realized_update", cosine=worst, multiplier=multipliers.max())
        return result, RealizedState(inner_state, found)

    return optax.GradientTransformationExtraArgs(init, update)


def active_set(
    k: Float[Array, "k k"], b: Float[Array, "k"], damping: float = 1e-6
) -> Float[Array, "k"]:
    """Multipliers `l >= 0` with `K l >= b` and `l_i (K l - b)_i = 0`.

    Every set of constraints that may hold with equality is solved for; the set that
    violates the conditions least is taken, which is the empty one when `b <= 0`.

    A Gram matrix in float32 does not tell gradients apart that differ by less than a
    thousandth of their length: the conditions then hold to about 1e-4 of the lengths.

    `k` is the Gram matrix of the constraints and may be singular, `b` their products
    with the point to be projected; the damping is that of `project_realized_update`.
    """
    size = k.shape[0]
    k, b, scale = unit_diagonal(k, b)
    sets = np.array(list(itertools.product((0.0, 1.0), repeat=size)), np.float32)
    sets = sets[np.argsort(sets.sum(axis=1), kind="stable")]
    active = jnp.asarray(sets)
    # Inactive rows become those of the identity, and their right-hand side zero.
    both = active[:, :, None] * active[:, None, :]
    off = jnp.eye(size)[None] * (1.0 - active)[:, :, None]
    exact = both * k[None] + off
    damped = exact + damping * jnp.eye(size)[None]
    target = active * b[None]

    def solved(x: Array) -> Array:
        return jnp.linalg.solve(damped, x[..., None])[..., 0]

    def applied(matrices: Array, x: Array) -> Array:
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("sij,sj->si", matrices, x, precision=highest)

    first = solved(target)
    found = first + solved(target - applied(exact, first))
    unmet = b[None] - applied(jnp.broadcast_to(k[None], exact.shape), found)
    violation = jnp.maximum(jnp.max(-found, axis=1), jnp.max(unmet, axis=1))
    violation = jnp.where(jnp.isnan(violation), jnp.inf, jnp.maximum(violation, 0.0))
    chosen = found[jnp.argmin(violation)]
    # A gradient that is not a number must reach the loop's check, not end up in a set.
    chosen = jnp.where(jnp.isfinite(b).all(), jnp.maximum(chosen, 0.0), jnp.nan)
    return scale * chosen


def second_moment(opt_state: Any, *, b2: float = 0.999) -> Tree | None:
    """Adam's second moment in an optimizer's state, bias-corrected; None without one.

    Any state with a field `nu` counts, and is corrected by its `count` when it has one.
    Before the first step it is zero. The state does not hold the decay `b2`.

    Raises:
      ValueError: several states have one.
    """

    def holds(x: Any) -> bool:
        return "nu" in getattr(x, "_fields", ())

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=holds) if holds(x)]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"the optimizer has {len(found)} second moments, so that its metric is not "
            "determined; wrap an optimizer with one"
        )
    nu = jax.tree.map(lambda v: v.astype(jnp.float32), found[0].nu)
    if "count" not in found[0]._fields:
        return nu
    count = found[0].count
    correction = jnp.where(count > 0, 1.0 - b2 ** jnp.maximum(count, 1), 1.0)
    return jax.tree.map(lambda v: v / correction, nu)


def _stacked(retain_grads: Tree, updates: Tree, size: int) -> Tree:
    """Retain gradients with a leading axis, which may be absent for one."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(retain_grads)]
    single = shapes == [leaf.shape for leaf in jax.tree.leaves(updates)]
    if size == 1 and single:
        retain_grads = jax.tree.map(lambda r: r[None], retain_grads)
    require_same_tree(
        "project_realized_update", "retain_grads", retain_grads, updates, stacked=size
    )
    return retain_grads
