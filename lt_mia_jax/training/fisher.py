"""The diagonal Fisher information of a task: how much its loss depends on a weight."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.training.transforms.products import add, dot

Tree = Any
"""A pytree of arrays that mirrors the parameters."""
PerExample = Callable[[Tree, Any], Array]
"""From (parameters, batch) to one unweighted number per text: `aux.per_example`."""


def diagonal_fisher(
    per_example: PerExample,
    params: Tree,
    batches: Iterable[Any],
    *,
    row_weight: Callable[[Any], Array] | None = None,
) -> Tree:
    """Mean over texts of the squared gradient of each text's loss, float32.

    The empirical Fisher information: tokens are those of the texts, not drawn from the
    model. One backward pass per text, in a loop on the device.

    `per_example` is the negative log-likelihood of each text. Batches are pytrees whose
    arrays have the texts on their leading axis; `row_weight` of a batch is the weight
    of each text (0 marks padding rows), such as `lambda b: b.weight`.

    Raises:
      ValueError: no batch.

    Source: Elastic weight consolidation, arXiv 1612.00796, section 2.1.
    """

    def of_batch(batch: Any) -> tuple[Tree, Array]:
        rows = len(jax.tree.leaves(batch)[0])
        weight = jnp.ones(rows) if row_weight is None else row_weight(batch)
        found = _squared_gradients(per_example, params, batch, jnp.asarray(weight))
        return found, jnp.sum(weight)

    return _divided(*sum_over("diagonal_fisher", map(of_batch, batches)))


def running_fisher(fisher: Tree | None, new: Tree, decay: float = 0.9) -> Tree:
    """`decay * fisher + new`, float32: the information of all tasks so far.

    None stands for no earlier task.

    Example:
      >>> running_fisher(jnp.array([10.0]), jnp.array([1.0]))
      Array([10.], dtype=float32)

    Source: elastic weight consolidation as LIBERO runs it, arXiv 2306.03310.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"running_fisher: decay = {decay}, expected 0 to 1")
    if fisher is None:
        return float32(new)
    return add(float32(new), decay, fisher)


def dmg(update: Tree, fisher: Tree) -> Float[Array, ""]:
    """What an update costs the protected task: `0.5 sum F u^2`, in nats.

    The second-order estimate of the rise of the task's loss, from a minimum of it.

    Example:
      >>> dmg(jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0]))
      Array(2., dtype=float32)

    Source: Elastic weight consolidation, arXiv 1612.00796 (Laplace approximation).
    """
    square = jax.tree.map(lambda u: jnp.square(u.astype(jnp.float32)), update)
    return 0.5 * dot(fisher, square)


def sum_over(who: str, parts: Iterable[Tree]) -> Tree:
    """The sum of trees in float32, in their order."""
    total = None
    for part in parts:
        total = float32(part) if total is None else _add(total, part)
        # Simulated devices share few threads: programs that wait for one another
        # must not queue up, or XLA gives up on them.
        jax.block_until_ready(total)
    if total is None:
        raise ValueError(f"{who} needs at least one batch")
    return total


@jax.jit
def _divided(total: Tree, count: Array) -> Tree:
    return jax.tree.map(lambda x: x / jnp.where(count > 0, count, 1.0), total)


@functools.partial(jax.jit, static_argnums=0)
def _squared_gradients(
    per_example: PerExample, params: Tree, batch: Any, weight: Float[Array, "B"]
) -> Tree:
    """Weighted sum over texts of the squared gradient."""

    def one(total: Tree, row: tuple[Any, Array]) -> tuple[Tree, None]:
        text, w = row
        g = jax.grad(lambda p: per_example(p, text).sum().astype(jnp.float32))(params)
        # A choice and not a product: the gradient of a filler may be anything.
        new = jax.tree.map(
            lambda t, x: t + jnp.where(w > 0, w * jnp.square(x.astype(jnp.float32)), 0),
            total,
            g,
        )
        return new, None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    rows = jax.tree.map(lambda x: jnp.asarray(x)[:, None], batch)
    return jax.lax.scan(one, zeros, (rows, weight.astype(jnp.float32)))[0]


def float32(tree: Tree) -> Tree:
    """The tree with float32 leaves."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@jax.jit
def _add(total: Tree, new: Tree) -> Tree:
    return jax.tree.map(lambda t, x: t + x.astype(jnp.float32), total, new)
