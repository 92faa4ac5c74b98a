"""How alike two models' representations of the same texts are."""

import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import per_item, same_items

Features = Float[np.ndarray | Array, "_ _"]


def linear_cka(x: Features, y: Features) -> float:
    """Linear centered kernel alignment of two sets of features, in [0, 1].

    Unchanged by rotations and scalings of either set. Biased upwards when there are not
    many more rows than columns: compare values at equal N only.

    Both sets are of the same tokens or texts in the same order, under two models.

    Raises:
      InputError: features that do not vary.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited,
    arXiv 1905.00414, section 3.
    """
    first, second = (per_item("features", z, ndim=2) for z in (x, y))
    n = same_items(x=first, y=second)
    first, second = (z - z.mean(axis=0, keepdims=True) for z in (first, second))
    # Whichever is smaller: N x N Gram matrices or D x D cross-products.
    if n < max(first.shape[1], second.shape[1]):
        a, b = first @ first.T, second @ second.T
        cross, own = (a * b).sum(), np.linalg.norm(a) * np.linalg.norm(b)
    else:
        cross = (first.T @ second).ravel() @ (first.T @ second).ravel()
        own = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    if own == 0:
        raise InputError(
            f"features of {n} rows are constant under one of the models; expected at "
            "least two different rows"
        )
    return float(cross / own)
