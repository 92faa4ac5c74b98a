"""Fit directions, subspaces and gates of interventions from activations.

Everything here runs on the host in float64. Activations come from
`LanguageModel.apply(..., capture=...)`; `token_rows` and `gates.masked_mean` exclude
padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, UInt, finite_rows
from lt_mia_jax.errors import InputError

Rows = Float[Array | np.ndarray, "N D"]
Others = Float[Array | np.ndarray, "M D"]


def token_rows(
    stream: Float[Array | np.ndarray, "B T D"], mask: UInt[Array | np.ndarray, "B T"]
) -> Float[np.ndarray, "N D"]:
    """The activations of all tokens where `mask` is set, text after text."""
    return np.asarray(stream).astype(np.float64)[np.asarray(mask) > 0]


def mean_difference(towards: Rows, away: Others) -> Float[np.ndarray, "D"]:
    """From the mean of `away` to the mean of `towards`, float32."""
    there, here = finite_rows("towards", towards), finite_rows("away", away)
    return _narrow(there.mean(axis=0) - here.mean(axis=0))


class Clusters(NamedTuple):
    """Topics among texts."""

    centroids: Float[np.ndarray, "K E"]
    """Mean of each, float32."""
    labels: Int[np.ndarray, "N"]
    """The cluster of each text."""
    silhouette: float
    """How well they are apart, at most 1; NaN for a single cluster."""


def cluster(
    embeddings: Float[Array | np.ndarray, "N E"],
    *,
    counts: Sequence[int] = range(2, 21),
    seed: int = 0,
) -> Clusters:
    """K-means, with the number of clusters that has the largest mean silhouette.

    Numbers without a silhouette (N or more, or more than different texts) are skipped;
    if none is left, all texts are one cluster.

    Source: GUARD-IT, arXiv 2605.12765: 2 to 20 on TOFU, 2 to 10 on MUSE.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    points = finite_rows("embeddings", embeddings)
    most = min(len(points) - 1, len(np.unique(points, axis=0)))
    whole = _narrow(points.mean(axis=0, keepdims=True))
    best = Clusters(whole, np.zeros(len(points), np.int32), float("nan"))
    for count in sorted({n for n in counts if 2 <= n <= most}):
        means = KMeans(count, n_init=10, random_state=seed)  # type: ignore
        labels = means.fit_predict(points)
        silhouette = float(silhouette_score(points, labels))
        if np.isnan(best.silhouette) or silhouette > best.silhouette:
            centroids = _narrow(means.cluster_centers_)
            best = Clusters(centroids, labels.astype(np.int32), silhouette)
    return best


def cluster_vectors(
    forget: Rows, labels: Int[Array | np.ndarray, "N"], retain: Others
) -> Float[np.ndarray, "K D"]:
    """Steering vectors of `edits.Rotation`, one per cluster.

    The mean activation of the cluster without its component along the retain mean,
    scaled to the average of the two mean norms.

    Activations are means over each text, at the layer to steer; labels are 0 to K - 1.

    Raises:
      InputError: a cluster has no texts, or its mean is parallel to the retain mean.

    Source: GUARD-IT, arXiv 2605.12765.
    """
    forget, retain = finite_rows("forget", forget), finite_rows("retain", retain)
    labels = np.asarray(labels)
    kept = retain.mean(axis=0)
    length = np.linalg.norm(retain, axis=1).mean()
    vectors, wrong = [], []
    for number in range(labels.max() + 1):
        own = forget[labels == number]
        if not len(own):
            wrong.append(f"{number} has no texts")
            continue
        mean = own.mean(axis=0)
        vector = mean - (mean @ kept) / (kept @ kept + 1e-6) * kept
        size = np.linalg.norm(vector)
        # What the 1e-6 leaves of a parallel mean is no direction.
        if size <= 1e-5 * np.linalg.norm(mean):
            wrong.append(f"{number} points where the retained texts do")
            continue
        target = (np.linalg.norm(own, axis=1).mean() + length) / 2
        vectors.append(vector * (target / size))
    if wrong:
        raise InputError(f"no vector for some clusters: {'; '.join(wrong)}")
    return _narrow(np.stack(vectors))


def threshold_for_rate(
    retain: Float[Array | np.ndarray, "M K"], rate: float = 0.05
) -> float:
    """The lowest threshold that opens the gate for at most `rate` of retain prompts.

    Give the similarities of other prompts than those of the evaluation.

    Example:
      >>> threshold_for_rate(np.array([[0.1], [0.2], [0.9], [0.3]]), rate=0.25)
      0.3

    Source: GUARD-IT, arXiv 2605.12765: the 5 % quantile of retained prompts.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"rate = {rate}, expected a share in [0, 1]")
    nearest = np.sort(finite_rows("retain", retain).max(axis=1))[::-1]
    allowed = int(rate * len(nearest) + 1e-9)
    # A gate opens strictly above its threshold.
    return float(nearest[allowed]) if allowed < len(nearest) else -1.0


def threshold_for_recall(
    forget: Float[Array | np.ndarray, "N K"],
    retain: Float[Array | np.ndarray, "M K"],
    penalty: float = 1.0,
) -> float:
    """The gate threshold that maximizes recall minus penalty * false-positive rate.

    Recall is the fraction of forget prompts for which the gate opens. Among equals, the
    middle of the widest gap between similarities.

    Source: GUARD-IT, arXiv 2605.12765.
    """
    near = finite_rows("forget", forget).max(axis=1)
    far = finite_rows("retain", retain).max(axis=1)
    seen = np.unique(np.concatenate([near, far, [-1.0, 1.0]]))
    middles, widths = (seen[:-1] + seen[1:]) / 2, np.diff(seen)
    value = [(near > t).mean() - penalty * (far > t).mean() for t in middles]
    best = np.isclose(value, np.max(value), rtol=0, atol=1e-12)
    return float(middles[np.argmax(np.where(best, widths, -1.0))])


def null_basis(retain: Others, share: float = 0.3) -> Float[np.ndarray, "D R"]:
    """Orthonormal columns along which retain activations are smallest, float64.

    They are that share of the eigenvectors of `H^T H`, with the smallest eigenvalues.

    Raises:
      InputError: the share is less than one direction, or more than all.

    Source: MLLMEraser, arXiv 2510.04217; AlphaEdit, arXiv 2410.02355.
    """
    rows = finite_rows("retain", retain)
    count = round(share * rows.shape[1])
    if not 1 <= count <= rows.shape[1]:
        raise InputError(
            f"share = {share} of {rows.shape[1]} directions is {count}; expected at "
            "least one and at most all"
        )
    return np.linalg.eigh(rows.T @ rows)[1][:, :count]


def erasure_factor(
    forget: Rows, basis: Float[np.ndarray, "D R"], ridge: float = 0.1
) -> Float[np.ndarray, "D"]:
    """The factor u of `edits.InputAware`: `u . h` is near 1 on forget prompts.

    Ridge regression on 1 within the null space: `u = V (Y^T Y + ridge I)^-1 Y^T 1` with
    `Y = H V`. Exactly orthogonal to everything outside the span of V.

    `H` are the activations of the forget prompts, each at its last token, and `V` is
    the basis.

    Source: MLLMEraser, arXiv 2510.04217: `W = P (X^T X + ridge P)^+ X^T 1 r^T`, solved
    in the basis of P by Cholesky.
    """
    from scipy.linalg import cho_factor, cho_solve

    if ridge <= 0:
        raise InputError(f"ridge = {ridge}, expected above 0")
    inside = finite_rows("forget", forget) @ basis
    system = inside.T @ inside + ridge * np.eye(basis.shape[1])
    return _narrow(basis @ cho_solve(cho_factor(system), inside.sum(axis=0)))


def forget_rows(
    forget: Rows, retain: Others, *, count: int, retain_rank: int | None = None
) -> Float[np.ndarray, "K D"]:
    """Rows of `edits.Projection`: main directions of the forget activations alone.

    The `count` main directions of the forget activations after the `retain_rank` (a
    quarter of the width if None) of the retain activations have been projected out.
    Means are not subtracted.

    Returns:
      Orthonormal float32 rows, orthogonal to the avoided directions.

    Raises:
      InputError: fewer than `count` directions are left.

    Source: our choice of a start for MRP, arXiv 2508.15449, whose reference code takes
    the forget span out of the retain activations instead.
    """
    rows, kept = finite_rows("forget", forget), finite_rows("retain", retain)
    rank = rows.shape[1] // 4 if retain_rank is None else retain_rank
    spared = _main_directions(kept)[1][:rank]
    sizes, found = _main_directions(rows - rows @ spared.T @ spared)
    # Squares in float64 tell sizes apart down to 1e-8 of the largest.
    left = int((sizes > 1e-6 * _main_directions(rows)[0][0]).sum())
    if not 1 <= count <= left:
        raise InputError(
            f"count = {count}, but the forgotten activations have {left} directions "
            f"outside of {len(spared)} retained ones; ask for 1 to {left}"
        )
    return _narrow(found[:count])


def _main_directions(
    rows: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """Singular values, the largest first, and the right singular vectors as rows."""
    squares, vectors = np.linalg.eigh(rows.T @ rows)
    return np.sqrt(np.maximum(squares[::-1], 0)), vectors.T[::-1]


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)
