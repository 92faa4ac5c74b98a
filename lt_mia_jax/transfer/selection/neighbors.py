"""Which earlier model to start from: errors of nearest neighbors on embeddings.

Source: NEVIS'22, arXiv 2211.11747. Kept: the choice by the error of a k-NN classifier
on the features of each earlier model. Not kept: its features and tasks.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.transfer.adapt.features import unit


def knn_error(
    x: Float[Array, "n D"],
    y: Int[Array, "n"],
    test_x: Float[Array, "m D"],
    test_y: Int[Array, "m"],
    *,
    n_classes: int,
    k: int = 5,
) -> Float[Array, ""]:
    """1 - accuracy of the majority of the `k` nearest neighbors, by cosine.

    Of classes with equal votes the one with the smallest number wins.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> float(knn_error(x, jnp.arange(2), x, jnp.arange(2), n_classes=2, k=1))
      0.0
    """
    cosines = jnp.matmul(unit(test_x), unit(x).T, precision="highest")
    nearest = jax.lax.top_k(cosines, min(k, len(x)))[1]
    votes = jax.nn.one_hot(y[nearest], n_classes).sum(axis=1)
    return 1 - jnp.mean(votes.argmax(axis=1) == test_y)


def choose_source(errors: Sequence[float] | Float[np.ndarray, "s"]) -> int | None:
    """The model of the smallest error, the earliest of equal ones; None of none."""
    return int(np.argmin(np.asarray(errors))) if len(errors) else None
