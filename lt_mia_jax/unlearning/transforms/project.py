"""Project the forget gradient off retain gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.training.transforms.contract import (
    Step,
    Tree,
    mirrored,
    numbers,
    require_choice,
    scalar,
    transformation,
    zero_stack,
)
from lt_mia_jax.training.transforms.products import (
    above_rounding,
    add,
    combination,
    cosine,
    dot,
    gram,
    products,
    solve,
)
from lt_mia_jax.trees import named_leaves


class ProjectState(NamedTuple):
    """State of `project_against`: the numbers of the last step."""

    monitored: dict[str, Array]
    """Cosine of the two whole gradients, and the coefficient (see there)."""


@transformation("retain_grads")
def project_against(
    *,
    when: Literal["always", "conflict"] = "always",
    scope: Literal["global", "leaf", "label"] = "global",
    labels: Callable[[str], Any] | None = None,
    eps: float = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    """Remove the component of the gradient along the retain gradient.

    `u = g - c r` with `c = <g, r> / (<r, r> + eps)`. Objectives are minimized, so
    `<g, r> < 0` is a conflict: descent on the forget objective raises the retain loss.
    Under momentum or Adam the executed step is not orthogonal; see
    `project_realized_update`. Monitors the mean of `c`, weighted by `<r, r>`.

    Args:
      when: "always" (rank-one geometric unlearning) or "conflict" only (PCGrad).
      scope: one inner product for the whole tree, per leaf, or per group of leaves with
        the same label. Only "global" guarantees the whole step.
      labels: from a "/"-joined path to the label of a leaf; for scope "label" only.
      eps: avoids division by zero.

    Raises:
      ValueError: `labels` and `scope` do not go together.

    Example:
      >>> forget, retain = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> tx = project_against()
      >>> tx.update(forget, tx.init(forget), retain_grads=retain)[0]
      Array([1., 0.], dtype=float32)

    Source: Geometric unlearning, arXiv 2511.17100; PCGrad, arXiv 2001.06782, algorithm
    1.
    """
    require_choice("project_against", "when", when, ("always", "conflict"))
    require_choice("project_against", "scope", scope, ("global", "leaf", "label"))
    if (labels is not None) != (scope == "label"):
        raise ValueError(
            f"project_against: scope = {scope!r} with labels = {labels!r}; scope "
            "'label' needs labels, and no other scope takes them"
        )

    def part(path: str) -> Any:
        if scope == "leaf":
            return path
        return labels(path) if labels is not None else None

    def init(params: Tree) -> ProjectState:
        return ProjectState(numbers("project_against", cosine=0, coefficient=0))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        retain = named_leaves(mirrored("project_against", extra, updates))
        result = named_leaves(updates)
        parts: dict[Any, list[str]] = {}
        for path in result:
            parts.setdefault(part(path), []).append(path)
        sums = []
        for paths in parts.values():
            g, r = [result[path] for path in paths], [retain[path] for path in paths]
            gg, gr, rr = dot(g, g), dot(g, r), dot(r, r)
            c = jnp.where(above_rounding(rr, gg), gr / (rr + eps), 0.0)
            if when == "conflict":
                c = jnp.where(gr < 0, c, 0.0)
            result |= zip(paths, add(g, -c, r), strict=True)
            sums.append((gg, gr, rr, c * rr))
        gg, gr, rr, removed = (scalar(sum(x)) for x in zip(*sums, strict=True))
        found = numbers(
            "project_against",
            cosine=cosine(gr, gg, rr),
            coefficient=removed / (rr + eps),
        )
        structure = jax.tree.structure(updates)
        return jax.tree.unflatten(structure, result.values()), ProjectState(found)

    return optax.GradientTransformationExtraArgs(init, update)


class SubspaceState(NamedTuple):
    """State of `retain_subspace_projection`."""

    buffer: Tree
    """The last retain gradients, float32, on a leading axis; zeros at first."""
    steps: Int[Array, ""]
    """Done so far, int32."""
    monitored: dict[str, Array]
    """Cosine of the gradient with the subspace, and the number of gradients in it."""


@transformation("retain_grads")
def retain_subspace_projection(
    *,
    size: int = 8,
    refresh: int = 1,
    metric: Literal["euclidean", "adam"] = "euclidean",
    damping: float = 1e-6,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Remove the component of the gradient in the span of the last retain gradients.

    `u = g - sum_i c_i r_i` with `K c = b`, `K_ij = <r_i, r_j>`, `b_i = <r_i, g>`. With
    the metric "adam" the inner product is `<a, b> = sum a b / (sqrt(v) + eps)`, which
    makes the preconditioned step `u / (sqrt(v) + eps)` orthogonal to every `r_i` for
    the given `v` and without momentum. For a guarantee on the executed step wrap the
    optimizer in `project_realized_update`.

    Args:
      size: number of retain gradients kept, each a float32 copy of the parameters.
      refresh: steps between two additions; the oldest gradient is dropped.
      metric: see above.
      damping: added to the eigenvalues of `K` after scaling its diagonal to 1.
      eps: of the optimizer; for the metric "adam" only.

    Returns:
      A transformation that with the metric "adam" also needs the extra argument
      `second_moment`: what the function of that name reads from an optimizer's state.

    Raises:
      ValueError: `size` or `refresh` is less than 1.

    Example:
      >>> forget, retain = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> tx = retain_subspace_projection(size=4)
      >>> tx.update(forget, tx.init(forget), retain_grads=retain)[0].round(3)
      Array([1., 0.], dtype=float32)

    Source: Geometric unlearning, arXiv 2511.17100, in Gram form, without a basis. The
    damping is relative to the norm of each gradient: long ones do not hide short ones.
    """
    if size < 1 or refresh < 1:
        raise ValueError(
            f"retain_subspace_projection: size = {size} and refresh = {refresh} must "
            "be at least 1"
        )
    require_choice(
        "retain_subspace_projection", "metric", metric, ("euclidean", "adam")
    )

    def init(params: Tree) -> SubspaceState:
        start = numbers("retain_subspace", cosine=0, size=0)
        return SubspaceState(zero_stack(params, size), jnp.zeros((), jnp.int32), start)

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        who = "retain_subspace_projection"
        retain_grads = mirrored(who, extra, updates)
        weight = None
        if metric == "adam":
            second_moment = mirrored(who, extra, updates, "second_moment")
            weight = jax.tree.map(
                lambda v: 1.0 / (jnp.sqrt(v.astype(jnp.float32)) + eps), second_moment
            )
        added = state.steps // refresh
        slot, write = added % size, state.steps % refresh == 0

        length = dot(retain_grads, retain_grads)
        factor = above_rounding(length, dot(updates, updates)).astype(jnp.float32)

        def store(kept: Array, new: Array) -> Array:
            # Chosen within the slot: a choice between whole buffers would copy them.
            old = jax.lax.dynamic_index_in_dim(kept, slot, keepdims=False)
            row = jnp.where(write, factor * new.astype(jnp.float32), old)
            return jax.lax.dynamic_update_index_in_dim(kept, row, slot, axis=0)

        buffer = jax.tree.map(store, state.buffer, retain_grads)
        b = products(buffer, updates, weight)
        c = solve(gram(buffer, weight), b, damping)
        result = add(updates, -1.0, combination(c, buffer))
        whole = updates
        if weight is not None:
            whole = jax.tree.map(
                lambda g, w: g.astype(jnp.float32) * w, updates, weight
            )
        inside = jnp.maximum(jnp.sum(c * b), 0.0)
        within = cosine(inside, inside, dot(whole, updates))
        filled = jnp.minimum(added + 1, size)
        found = numbers("retain_subspace", cosine=within, size=filled)
        return result, SubspaceState(buffer, state.steps + 1, found)

    return optax.GradientTransformationExtraArgs(init, update)
