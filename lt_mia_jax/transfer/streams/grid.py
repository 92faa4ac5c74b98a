"""A grid of styles and topics on which the removal of one of them is judged.

Source: UnlearnCanvas, arXiv 2402.11846. Kept: the three accuracies. Not kept: images
(styles are ways to write, objects are topics), and FID, which becomes the Frechet
distance of hidden features. Seconds, memory and storage are for the caller to measure.
"""

from typing import Any, Literal, NamedTuple

Predictions = Any  # both: arrays of NumPy or JAX
Scalar = Any


class GridScores(NamedTuple):
    """What one removal did, as shares in [0, 1]."""

    ua: Scalar
    """Unlearning: target prompts that are *not* recognized as the target."""
    ira: Scalar
    """In-domain retain accuracy: on the other members of the same axis."""
    cra: Scalar
    """Cross-domain retain accuracy: of the other axis, on all prompts."""


def grid_scores(
    styles: Predictions,
    topics: Predictions,
    *,
    axis: Literal["style", "topic"],
    target: int,
) -> GridScores:
    """Scores of a model from which one style or one topic was removed.

    `styles` and `topics` (S, O, R) are what two classifiers say: entry [s, o, r] of
    text r asked for in style s about topic o. Number `target` of `axis` was removed.

    Example:
      >>> import numpy as np
      >>> styles = np.array([[[1], [1]], [[1], [1]]])  # style 0 is gone
      >>> topics = np.array([[[0], [1]], [[0], [0]]])
      >>> scores = grid_scores(styles, topics, axis="style", target=0)
      >>> [float(x) for x in scores]
      [1.0, 1.0, 0.75]
    """
    xp = styles.__array_namespace__()
    if styles.shape != topics.shape or styles.ndim != 3:
        raise ValueError(f"grid_scores: shapes {styles.shape} and {topics.shape}")
    if axis == "topic":  # the same with the axes swapped
        styles, topics = (xp.swapaxes(x, 0, 1) for x in (topics, styles))
    members, others = styles.shape[:2]
    if not 0 <= target < members or members < 2:
        raise ValueError(f"grid_scores: target {target} of {members} on axis {axis!r}")
    right = styles == xp.arange(members)[:, None, None]
    cross = topics == xp.arange(others)[None, :, None]
    retained = right.sum() - right[target].sum()
    count = right.size - right[target].size
    return GridScores(1 - right[target].mean(), retained / count, cross.mean())


def frechet_distance(a: Any, b: Any) -> Scalar:
    """Squared Frechet distance of the normal distributions of two feature sets.

    `|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))` of arrays (n, D) and (m, D) with
    means `m` and sample covariances `C`.

    Example:
      >>> import numpy as np
      >>> x = np.array([[0.0], [2.0]])
      >>> float(frechet_distance(x, x + 3))
      9.0
    """
    xp = a.__array_namespace__()
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"frechet_distance: shapes {a.shape} and {b.shape}")
    moved = a.mean(axis=0) - b.mean(axis=0)
    first, second = (xp.atleast_2d(xp.cov(x.T)) for x in (a, b))
    values, vectors = xp.linalg.eigh(first)
    root = (vectors * xp.sqrt(xp.clip(values, 0, None))[None]) @ vectors.T
    # C_a C_b has the eigenvalues of this symmetric product.
    inner = xp.linalg.eigvalsh(root @ second @ root)
    trace = xp.trace(first) + xp.trace(second)
    trace = trace - 2 * xp.sqrt(xp.clip(inner, 0, None)).sum()
    return (moved * moved).sum() + xp.clip(trace, 0, None)
