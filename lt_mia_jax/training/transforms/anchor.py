"""Keep parameters near others: the start, a running mean, a region around them."""

import zlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Int, UInt
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    at_params,
    numbers,
    require,
    require_choice,
    transformation,
)
from lt_mia_jax.training.transforms.products import add, dot, norm
from lt_mia_jax.trees import path_of

_KEY = "threefry2x32"


class EwcState(NamedTuple):
    """State of `ewc_pull`."""

    anchor: Tree
    """Parameters to stay near, float32."""
    fisher: Tree
    """Diagonal Fisher information, float32; None stands for ones."""
    monitored: dict[str, Array]
    """Distance of the parameters from the anchor, and the penalty."""


@transformation("params")
def ewc_pull(
    strength: float, anchor: Tree | None = None, fisher: Tree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of `strength / 2 * sum F (params - anchor)^2`.

    The anchor and `F`, the Fisher information, mirror the parameters. Without them they
    are the argument of `init`, and 1 everywhere (an L2 penalty). Place it in front of
    the optimizer.

    Example:
      >>> tx, params = ewc_pull(0.5), jnp.array([1.0, 2.0])
      >>> state = tx.init(jnp.zeros(2))  # the anchor
      >>> tx.update(jnp.zeros(2), state, params)[0]
      Array([0.5, 1. ], dtype=float32)

    Source: Elastic weight consolidation, arXiv 1612.00796, equation 3.
    """

    def init(params: Tree) -> EwcState:
        return EwcState(
            at_params(params if anchor is None else anchor, params, jnp.float32),
            None if fisher is None else at_params(fisher, params, jnp.float32),
            numbers("ewc_pull", distance=0, penalty=0),
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        away = _difference(params, state.anchor)
        force = away
        if state.fisher is not None:
            force = jax.tree.map(jnp.multiply, state.fisher, away)
        penalty = 0.5 * strength * dot(force, away)
        found = numbers("ewc_pull", distance=norm(away), penalty=penalty)
        if strength != 0:  # with 0, adding would turn -0.0 into 0.0
            updates = add(updates, strength, force)
        return updates, state._replace(monitored=found)

    return optax.GradientTransformationExtraArgs(init, update)


class TrustState(NamedTuple):
    """State of `trust_region`."""

    metric: Tree
    """Weight of each squared element, float32; None stands for ones."""
    center: Tree
    """Parameters at the start, float32; None when each step has a region of its own."""
    monitored: dict[str, Array]
    """Length before shortening."""


@transformation()
def trust_region(
    radius: float,
    metric: Tree | None = None,
    *,
    around: Literal["step", "start"] = "step",
) -> optax.GradientTransformationExtraArgs:
    """Shorten steps to a ball around the current or the initial parameters.

    The norm of `x` is `sqrt(sum metric * x^2)`. Place it behind the optimizer. Ascent
    under Adam or with clipped gradients does not slow down by itself; "start" bounds
    how far it goes.

    Args:
      radius: radius of the ball.
      metric: mirrors the parameters, such as a diagonal Fisher; None is Euclidean.
      around: "step" bounds each update. "start" bounds the distance from the argument
        of `init` (one more tree, and `update` needs `params`), by projection.

    Raises:
      ValueError: `radius` is not positive.

    Example:
      >>> tx, step = trust_region(1.0), jnp.array([3.0, 4.0])
      >>> tx.update(step, tx.init(step))[0]
      Array([0.6, 0.8], dtype=float32)

    Source: clipping by norm, arXiv 1211.5063, algorithm 1, of the step in place of the
    gradient; with a Fisher metric the trust region of arXiv 1502.05477.
    """
    require_choice("trust_region", "around", around, ("step", "start"))
    if not radius > 0:
        raise ValueError(f"trust_region: radius = {radius}, expected more than 0")

    def init(params: Tree) -> TrustState:
        return TrustState(
            None if metric is None else at_params(metric, params, jnp.float32),
            at_params(params, params, jnp.float32) if around == "start" else None,
            numbers("trust_region", norm=0),
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        moved = updates
        if state.center is not None:
            require("trust_region", params=params)
            moved = _sum(_difference(params, state.center), updates)
        weighted = moved
        if state.metric is not None:
            weighted = jax.tree.map(
                lambda w, x: w * x.astype(jnp.float32), state.metric, moved
            )
        length = jnp.sqrt(dot(weighted, moved))
        outside = length > radius
        factor = jnp.where(outside, radius / jnp.where(outside, length, 1.0), 1.0)
        wanted = jax.tree.map(lambda x: factor * x.astype(jnp.float32), moved)
        if state.center is not None:
            wanted = _difference(_sum(wanted, state.center), params)
        result = jax.tree.map(
            lambda u, w: jnp.where(outside, w.astype(u.dtype), u), updates, wanted
        )
        return result, state._replace(monitored=numbers("trust_region", norm=length))

    return optax.GradientTransformationExtraArgs(init, update)


class TeacherState(NamedTuple):
    """State of `ema_teacher`."""

    teacher: Tree
    """Running mean of the parameters, float32; `optax.tree.get(state, "teacher")`."""
    mask: Tree
    """Boolean: False keeps the teacher's weight; None stands for True everywhere."""


@transformation("params")
def ema_teacher(
    decay: float, mask: Tree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Keep a running mean of the parameters beside them; steps pass unchanged.

    `teacher = decay * teacher + (1 - decay) * (params + step)`, in float32. Place it
    last in a chain, where it sees the executed step. Where a mask is False, the teacher
    does not change; it mirrors the parameters, and axes may be 1.

    Raises:
      ValueError: `decay` is outside [0, 1].

    Example:
      >>> tx, params = ema_teacher(0.75), jnp.zeros(1)
      >>> step, state = tx.update(jnp.ones(1), tx.init(params), params)
      >>> state.teacher
      Array([0.25], dtype=float32)

    Source: Mean teachers, arXiv 1703.01780; the mask is that of Parameter-Selective
    Mean Teacher.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"ema_teacher: decay = {decay}, expected in [0, 1]")

    def init(params: Tree) -> TeacherState:
        return TeacherState(
            at_params(params, params, jnp.float32),
            None if mask is None else at_params(mask, params),
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        new = _sum(params, updates)
        moved = running_mean(state.teacher, new, decay, state.mask)
        return updates, TeacherState(moved, state.mask)

    return optax.GradientTransformationExtraArgs(init, update)


def running_mean(
    mean: Tree, new: Tree, decay: float, moving: Tree | None = None
) -> Tree:
    """`decay * mean + (1 - decay) * new` where `moving`; elsewhere the mean's own bits.

    Computed in float32, in the dtypes of `mean`. The mask is boolean and mirrors the
    trees; axes may be 1, and None stands for True everywhere.
    """
    moved = add(mean, 1.0 - decay, _difference(new, mean))
    return moved if moving is None else jax.tree.map(jnp.where, moving, moved, mean)


class RestoreState(NamedTuple):
    """State of `stochastic_restore`."""

    anchor: Tree
    """Parameters to go back to, in the dtypes of the parameters."""
    key: UInt[Array, "2"]
    """Data of the random key, the same at every step."""
    steps: Int[Array, ""]
    """Done so far, int32."""


@transformation("params")
def stochastic_restore(
    probability: float, anchor: Tree | None = None, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Reset each weight to its anchor with a small probability at every step.

    The anchor mirrors the parameters; None is the argument of `init`. The draws depend
    on the seed, the step and the path of the leaf, not on sharding or on other leaves.
    Place it behind the optimizer.

    Raises:
      ValueError: `probability` is outside [0, 1].

    Example:
      >>> tx = stochastic_restore(1.0)  # every weight at every step
      >>> state, params = tx.init(jnp.zeros(2)), jnp.array([1.0, 2.0])
      >>> tx.update(jnp.ones(2), state, params)[0]
      Array([-1., -2.], dtype=float32)

    Source: Continual test-time domain adaptation, arXiv 2203.13591, equation 8.
    """
    if not 0 <= probability <= 1:
        raise ValueError(
            f"stochastic_restore: probability = {probability}, expected in [0, 1]"
        )

    def init(params: Tree) -> RestoreState:
        return RestoreState(
            at_params(params if anchor is None else anchor, params),
            jax.random.key_data(jax.random.key(seed, impl=_KEY)),
            jnp.zeros((), jnp.int32),
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        key = jax.random.wrap_key_data(state.key, impl=_KEY)
        key = jax.random.fold_in(key, state.steps)

        def leaf(path: Any, u: Array, p: Array, a: Array) -> Array:
            own = jax.random.fold_in(key, zlib.crc32(path_of(path).encode()))
            back = jax.random.bernoulli(own, probability, u.shape)
            return jnp.where(back, (a - p).astype(u.dtype), u)

        result = jax.tree_util.tree_map_with_path(leaf, updates, params, state.anchor)
        return result, state._replace(steps=state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _sum(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(
        lambda x, y: x.astype(jnp.float32) + y.astype(jnp.float32), a, b
    )


def _difference(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(
        lambda x, y: x.astype(jnp.float32) - y.astype(jnp.float32), a, b
    )
