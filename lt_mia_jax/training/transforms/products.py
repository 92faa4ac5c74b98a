"""Inner products of trees in float32, and the small systems they lead to.

Written for global arrays under `jit`: the compiler adds the reductions over devices,
and nothing is flattened, so sharded leaves stay where they are. Inside `shard_map` give
`dot` the partition specs; the other functions are not for use there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.training.transforms.contract import Tree

_EXACT = jax.lax.Precision.HIGHEST
_ROUNDING = 1e-6


def dot(a: Tree, b: Tree, *, partition_specs: Tree | None = None) -> Float[Array, ""]:
    """Sum over all elements of `a * b`, multiplied and added in float32.

    Inside `shard_map` give the `PartitionSpec` of each leaf. A leaf is added up over
    the mesh axes that split it and no others: adding over an axis on which it is
    replicated would count it several times.
    """
    parts = [
        jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    if partition_specs is None:
        return jnp.asarray(sum(parts), jnp.float32)
    specs = jax.tree.leaves(
        partition_specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    by_axes: dict[tuple[str, ...], Any] = {}
    for part, spec in zip(parts, specs, strict=True):
        axes = _axes(spec)
        by_axes[axes] = by_axes.get(axes, 0.0) + part
    total = sum(jax.lax.psum(x, axes) if axes else x for axes, x in by_axes.items())
    return jnp.asarray(total, jnp.float32)


def above_rounding(
    retain: Float[Array, "*k"], forget: Float[Array, ""]
) -> Bool[Array, "*k"]:
    """Whether retain gradients are more than float32 rounding beside the forget one.

    At the reference model the gradient of a KL to it is zero but for rounding, which
    differs between devices: its direction constrains nothing. Both are squared norms.
    """
    return retain > _ROUNDING**2 * forget


def norm(a: Tree) -> Float[Array, ""]:
    """Square root of the sum of squares."""
    return jnp.sqrt(dot(a, a))


def squared_norms(stack: Tree) -> Float[Array, "k"]:
    """Sum of squares of each of the stacked trees."""
    parts = [
        jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
        for x in jax.tree.leaves(stack)
    ]
    return jnp.asarray(sum(parts), jnp.float32)


def cosine(
    product: Float[Array, "*k"], a: Float[Array, "*k"], b: Float[Array, ""]
) -> Float[Array, "*k"]:
    """The cosine from an inner product and two squared norms; 0 when one is 0."""
    # Square roots first: the product of two small squared norms would underflow.
    length = jnp.sqrt(a) * jnp.sqrt(b)
    return jnp.where(length > 0, product / jnp.where(length > 0, length, 1.0), 0.0)


def add(a: Tree, factor: Any, b: Tree) -> Tree:
    """`a + factor * b` computed in float32, in the dtypes of `a`."""

    def leaf(x: Array, y: Array) -> Array:
        return (x.astype(jnp.float32) + factor * y.astype(jnp.float32)).astype(x.dtype)

    return jax.tree.map(leaf, a, b)


def gram(stack: Tree, weight: Tree | None = None) -> Float[Array, "k k"]:
    """`K[i, j]`: inner product of the stacked trees i and j (on a leading axis).

    The weight is a factor on each element, without that axis; None means 1.
    """
    return _contract(_weighted(stack, weight), stack)


def products(stack: Tree, tree: Tree, weight: Tree | None = None) -> Float[Array, "k"]:
    """Inner product of each of the stacked trees with `tree`; see `gram`."""
    single = jax.tree.map(lambda x: x[None], tree)
    return _contract(_weighted(stack, weight), single)[:, 0]


def combination(coefficients: Float[Array, "k"], stack: Tree) -> Tree:
    """The sum of the stacked trees times their coefficients, float32."""

    def leaf(x: Array) -> Array:
        wide = x.astype(jnp.float32)
        return jnp.tensordot(coefficients, wide, axes=(0, 0), precision=_EXACT)

    return jax.tree.map(leaf, stack)


def unit_diagonal(
    k: Float[Array, "k k"], b: Float[Array, "k"]
) -> tuple[Float[Array, "k k"], Float[Array, "k"], Float[Array, "k"]]:
    """`k` and `b` for vectors scaled to length 1, and the scale of each.

    So a damping means the same for a long and for a short gradient. Vectors of length
    0 get scale 0, and drop out.
    """
    diagonal = jnp.diagonal(k)
    positive = diagonal > 0
    scale = jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, diagonal, 1.0)), 0.0)
    return k * scale[:, None] * scale[None], b * scale, scale


def solve(
    k: Float[Array, "k k"], b: Float[Array, "k"], damping: float
) -> Float[Array, "k"]:
    """`c` with `k c = b` for a Gram matrix that may be singular.

    The Gram matrix is scaled to a unit diagonal and solved with `damping` added to its
    eigenvalues; one step of refinement removes the bias that damping brings.
    """
    k, b, scale = unit_diagonal(k, b)
    values, vectors = jnp.linalg.eigh(k)
    inverse = 1.0 / (jnp.maximum(values, 0.0) + damping)

    product = functools.partial(jnp.matmul, precision=_EXACT)

    def damped(x: Array) -> Array:
        return product(vectors, inverse * product(vectors.T, x))

    first = damped(b)
    return scale * (first + damped(b - product(k, first)))


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Names of the mesh axes that split a leaf, sorted."""
    entries = [(x,) if isinstance(x, str) else x or () for x in spec]
    return tuple(sorted({name for names in entries for name in names}))


def _weighted(stack: Tree, weight: Tree | None) -> Tree:
    if weight is None:
        return stack
    return jax.tree.map(lambda x, w: x.astype(jnp.float32) * w[None], stack, weight)


def _contract(a: Tree, b: Tree) -> Float[Array, "k m"]:
    """Inner products over all axes but the first, added over leaves."""

    def leaf(x: Array, y: Array) -> Array:
        axes = tuple(range(1, x.ndim))
        return jax.lax.dot_general(
            x.astype(jnp.float32),
            y.astype(jnp.float32),
            ((axes, axes), ((), ())),
            precision=_EXACT,
        )

    parts = jax.tree.leaves(jax.tree.map(leaf, a, b))
    return jnp.asarray(sum(parts), jnp.float32)
