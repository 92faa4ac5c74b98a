"""Combine the forget and the retain gradient; or turn descent into ascent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    mirrored,
    numbers,
    scalar,
    transformation,
)
from lt_mia_jax.training.transforms.products import cosine, dot

Weight = float | int | Callable[[Any], Any]
"""A factor, or a schedule: from the number of steps done to a factor."""


@transformation()
def ascend(scale: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Turn descent into ascent: the gradient times `-scale`.

    For a plain loss only: the objectives of this package are already to be minimized.
    Adam removes the scale of a gradient that stands alone.

    Example:
      >>> tx, gradient = ascend(), jnp.array([1.0, -2.0])
      >>> tx.update(gradient, tx.init(gradient))[0]
      Array([-1.,  2.], dtype=float32)

    Source: Knowledge Unlearning for Mitigating Privacy Risks in Language Models, arXiv
    2210.01504, equation 1.
    """

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        return jax.tree.map(lambda g: (-scale * g).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class CombineState(NamedTuple):
    """State of `combine_forget_retain`."""

    steps: Int[Array, ""]
    """Done so far, int32."""
    forget: Any
    """State of the forget side's own transformation."""
    retain: Any
    """The same of the retain side."""
    monitored: dict[str, Array]
    """Norm of each side after its own transformation, and their cosine."""


@transformation("retain_grads")
def combine_forget_retain(
    forget_weight: Weight = 1.0,
    retain_weight: Weight = 1.0,
    *,
    forget_transform: optax.GradientTransformation | None = None,
    retain_transform: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`forget_weight * F(gradient) + retain_weight * R(retain gradient)`.

    Transformations of one side only, such as clipping, belong here: `optax.chain` hands
    the same `retain_grads` to all its links, so that an earlier link changes the forget
    side alone. In front of Adam only the ratio of the weights matters.

    The weights are factors or schedules over steps. `F` and `R` are the two transforms,
    which get all extra arguments; None is the identity.

    Example:
      >>> forget, retain = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> tx = combine_forget_retain(1.0, 0.5)
      >>> tx.update(forget, tx.init(forget), retain_grads=retain)[0]
      Array([1., 2.], dtype=float32)

    Source: GradDiff of TOFU, arXiv 2401.06121, section 4; sums of that kind in general.
    """
    forget_side = optax.with_extra_args_support(forget_transform or optax.identity())
    retain_side = optax.with_extra_args_support(retain_transform or optax.identity())

    def init(params: Tree) -> CombineState:
        return CombineState(
            jnp.zeros((), jnp.int32),
            forget_side.init(params),
            retain_side.init(params),
            numbers("combine", forget_norm=0, retain_norm=0, cosine=0),
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        retain_grads = mirrored("combine_forget_retain", extra, updates)
        f, f_state = forget_side.update(updates, state.forget, params, **extra)
        r, r_state = retain_side.update(retain_grads, state.retain, params, **extra)
        gamma, alpha = (
            weight(state.steps) if callable(weight) else weight
            for weight in (forget_weight, retain_weight)
        )
        ff, rr = dot(f, f), dot(r, r)
        found = numbers(
            "combine",
            forget_norm=jnp.sqrt(ff),
            retain_norm=jnp.sqrt(rr),
            cosine=cosine(dot(f, r), ff, rr),
        )
        state = CombineState(state.steps + 1, f_state, r_state, found)
        return _weighted_sum(gamma, f, alpha, r), state

    return optax.GradientTransformationExtraArgs(init, update)


class DualState(NamedTuple):
    """State of `dual_combine`."""

    multiplier: Array
    """Weight of the retain gradient at the next step."""
    steps: Int[Array, ""]
    """Done so far, int32."""
    monitored: dict[str, Array]
    """The multiplier that the last step used."""


@transformation("retain_grads", "retain_value")
def dual_combine(
    *,
    tolerance: float,
    step_size: float,
    initial: float,
    warmup: int,
    forget_weight: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Forget under the constraint that the retain loss stays below `tolerance`.

    The update is `forget_weight * gradient + m * retain gradient`; afterwards `m`
    becomes `max(0, m + step_size * (retain_value - tolerance))`, once per call of
    `update`. `retain_value` is the loss over the batch of all devices: otherwise the
    multipliers of the devices diverge.

    Set `tolerance` above the loss at the start. The multiplier starts at `initial` and
    is constant during the `warmup` steps.

    Raises:
      ValueError: a negative `initial`, `step_size` or `warmup`.

    Example:
      >>> forget, retain = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> tx = dual_combine(tolerance=1.0, step_size=0.5, initial=1.0, warmup=0)
      >>> state, values = tx.init(forget), {"retain_grads": retain, "retain_value": 2.0}
      >>> update, state = tx.update(forget, state, **values)
      >>> float(state.multiplier)  # the retain loss is 1 above the tolerance
      1.5

    Source: primal-dual unlearning, arXiv 2506.05314.
    """
    if initial < 0 or step_size < 0 or warmup < 0:
        raise ValueError(
            f"dual_combine: initial = {initial}, step_size = {step_size} and warmup = "
            f"{warmup} must not be negative"
        )

    def init(params: Tree) -> DualState:
        start = numbers("dual_combine", multiplier=initial)
        return DualState(scalar(initial), jnp.zeros((), jnp.int32), start)

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        retain_grads = mirrored("dual_combine", extra, updates)
        used, value = state.multiplier, scalar(extra["retain_value"])
        result = _weighted_sum(forget_weight, updates, used, retain_grads)
        moved = jnp.maximum(0.0, used + step_size * (value - tolerance))
        following = jnp.where(state.steps >= warmup, moved, used)
        found = numbers("dual_combine", multiplier=used)
        return result, DualState(following, state.steps + 1, found)

    return optax.GradientTransformationExtraArgs(init, update)


class AdaptiveState(NamedTuple):
    """State of `adaptive_combine`."""

    baseline: Array
    """Mean of the retain losses of the first epoch so far."""
    steps: Int[Array, ""]
    """Done so far, int32."""
    monitored: dict[str, Array]
    """The retain weight of the last step, and the baseline."""


@transformation("retain_grads", "retain_value")
def adaptive_combine(
    *,
    steps_per_epoch: int,
    lowest: float = 1.2,
    highest: float = 2.3,
    slope: float = 0.3,
    growth: float = 6.0,
    offset: float = 0.8,
    forget_weight: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Raise the retain weight with the retain loss above that of the first epoch.

    `forget_weight * gradient + a * retain gradient`, where `a` is `lowest` in the first
    epoch and then `clip(round(slope * growth^x + offset, 1), lowest, highest)`; `x` is
    the excess of the current retain loss over the mean of the first epoch, which has
    `steps_per_epoch` calls of `update`. The authors' code has 2.3 for `highest`, their
    text 2.8.

    Raises:
      ValueError: `steps_per_epoch` is less than 1, or `lowest` above `highest`.

    Example:
      >>> forget, retain = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> tx = adaptive_combine(steps_per_epoch=1)
      >>> values = {"retain_grads": retain, "retain_value": 2.0}
      >>> tx.update(forget, tx.init(forget), **values)[0]  # 1.2 in the first epoch
      Array([1. , 3.4], dtype=float32)

    Source: SHA256 at SemEval-2025 Task 4, arXiv 2504.12996. The baseline is the mean of
    the batch losses; the authors' code divides their sum by the number of examples, so
    that its weight stays at `highest`.
    """
    if steps_per_epoch < 1 or lowest > highest:
        raise ValueError(
            f"adaptive_combine: steps_per_epoch = {steps_per_epoch} (expected >= 1), "
            f"lowest = {lowest} and highest = {highest} (expected in this order)"
        )

    def init(params: Tree) -> AdaptiveState:
        start = numbers("adaptive_combine", weight=lowest, baseline=0)
        return AdaptiveState(scalar(0), jnp.zeros((), jnp.int32), start)

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        retain_grads = mirrored("adaptive_combine", extra, updates)
        value = scalar(extra["retain_value"])
        first_epoch = state.steps < steps_per_epoch
        rise = jnp.maximum(value - state.baseline, 0.0)
        rule = jnp.round(10.0 * (slope * growth**rise + offset)) / 10.0
        weight = jnp.where(first_epoch, lowest, jnp.clip(rule, lowest, highest))
        result = _weighted_sum(forget_weight, updates, weight, retain_grads)
        mean = state.baseline + (value - state.baseline) / (state.steps + 1)
        baseline = jnp.where(first_epoch, mean, state.baseline)
        found = numbers("adaptive_combine", weight=weight, baseline=baseline)
        return result, AdaptiveState(baseline, state.steps + 1, found)

    return optax.GradientTransformationExtraArgs(init, update)


def _weighted_sum(a: Any, forget: Tree, b: Any, retain: Tree) -> Tree:
    """`a * forget + b * retain` in float32, in the dtypes of `forget`."""

    def leaf(f: Array, r: Array) -> Array:
        total = a * f.astype(jnp.float32) + b * r.astype(jnp.float32)
        return total.astype(f.dtype)

    return jax.tree.map(leaf, forget, retain)
