"""Which pretrained model will transfer: scores of its features on labeled data.

Higher is better for each of them. Features are arrays (n, D), labels integers (n,).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from lt_mia_jax.arrays import Array, Float, Int

CHUNK = 512  # rows whose distances to all others are held at once


def knn_entropy(
    x: Float[Array, "n D"], k: int = 3, min_dist: float = 1.0
) -> Float[Array, ""]:
    """Differential entropy of a sample by its nearest neighbors, nats.

    `-psi(k) + psi(n) + D / n * sum log(2 max(e, min_dist))` with `e` the distance in
    the maximum norm to the k-th neighbor (the last one of fewer). A factor `a` adds
    `D log a` as long as no distance is below `min_dist`.

    Source: Kozachenko and Leonenko (1987).
    """
    return _entropies(x, jnp.zeros(len(x), jnp.int32), 1, k, min_dist)[0][0]


def tmi(
    x: Float[Array, "n D"],
    y: Int[Array, "n"],
    n_classes: int,
    *,
    k: int = 3,
    min_dist: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy of the features given the class, and the share of clamped distances.

    Classes count by their size; those with fewer than two rows count 0. The score is
    not free of scale, and constant once all distances are below `min_dist`: compare
    only features of equal width, and distrust a share near 1.

    Example:
      >>> x, y = jnp.array([[0.0], [4.0], [0.0], [8.0]]), jnp.array([0, 0, 1, 1])
      >>> wide, clamped = tmi(x, y, 2)
      >>> bool(wide > tmi(x / 2, y, 2)[0]), float(clamped)
      (True, 0.0)

    Source: "Fast and Accurate Transferability Measurement by Evaluating Intra-class
    Feature Variance" (TMI). Kept: the score, with the estimator's constants k = 3 and
    `min_dist` = 1. Not kept: its image models and its published correlations.
    """
    values, counts, clamped = _entropies(x, y, n_classes, k, min_dist)
    return jnp.sum(counts * values) / len(x), clamped


@functools.partial(jax.jit, static_argnums=(2, 3))
def _entropies(
    x: Array, y: Array, n_classes: int, k: int, min_dist: Any
) -> tuple[Array, Array, Array]:
    """Entropy and size of each class, and the share of clamped distances."""
    rows, width = x.shape
    x, k = x.astype(jnp.float32), min(k, rows - 1)
    counts = jnp.bincount(y, length=n_classes)
    if k < 1:
        return jnp.zeros(n_classes), counts, jnp.zeros(())
    nearest = jnp.clip(counts - 1, 1, k)

    def distance(i: Array) -> Array:
        far = jnp.max(jnp.abs(x - x[i][None]), axis=1)
        far = jnp.where((y == y[i]) & (jnp.arange(rows) != i), far, jnp.inf)
        return -jax.lax.top_k(-far, k)[0][nearest[y[i]] - 1]

    found = jax.lax.map(distance, jnp.arange(rows), batch_size=CHUNK)
    known = counts[y] > 1
    logs = jnp.where(known, jnp.log(2 * jnp.maximum(found, min_dist)), 0.0)
    sums = jnp.zeros(n_classes).at[y].add(logs)
    size = jnp.maximum(counts, 2).astype(jnp.float32)
    values = digamma(size) - digamma(nearest.astype(jnp.float32)) + width * sums / size
    clamped = jnp.sum(known & (found < min_dist)) / jnp.maximum(jnp.sum(known), 1)
    return jnp.where(counts > 1, values, 0.0), counts, clamped


def h_score(
    x: Float[Array, "n D"], y: Int[Array, "n"], n_classes: int
) -> Float[Array, ""]:
    """`tr(cov(x)^-1 cov(E[x | y]))`: how much of the features the class explains.

    Source: "An Information-Theoretic Approach to Transferability in Task Transfer
    Learning" (H-score).
    """
    x = x - x.mean(axis=0, keepdims=True)
    hot = jax.nn.one_hot(y, n_classes)
    means = hot.T @ x / jnp.maximum(hot.sum(axis=0), 1)[:, None]
    between = hot @ means
    inverse = jnp.linalg.pinv(x.T @ x / len(x), hermitian=True)
    return jnp.trace(inverse @ (between.T @ between / len(x)))


def probe_accuracy(
    x: Float[Array, "n D"],
    y: Int[Array, "n"],
    test_x: Float[Array, "m D"],
    test_y: Int[Array, "m"],
    n_classes: int,
    ridge: float = 1e-3,
) -> Float[Array, ""]:
    """Accuracy of a linear probe: ridge regression on the classes, in closed form."""
    mean, scale = x.mean(axis=0)[None], x.std(axis=0)[None] + 1e-6
    a, b = ((jnp.c_[(z - mean) / scale, jnp.ones(len(z))]) for z in (x, test_x))
    hot = jax.nn.one_hot(y, n_classes)
    gram = a.T @ a + ridge * len(x) * jnp.eye(a.shape[1])
    guess = (b @ jnp.linalg.solve(gram, a.T @ hot)).argmax(axis=1)
    return jnp.mean(guess == test_y)
