"""Losses of the learned attack: binary cross-entropy, focal and pairwise hinge.

Each returns one value per row except the pairwise hinge, which is a mean over pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from lt_mia_jax.arrays import Array


def binary_cross_entropy(
    logits: Float[Array, " B"], labels: Float[Array, " B"], *, smoothing: float = 0.0
) -> Float[Array, " B"]:
    """Cross-entropy per row in nats, on labels `y (1 - e) + e / 2` smoothed by `e`."""
    targets = labels * (1 - smoothing) + smoothing / 2
    away = (1 - targets) * jax.nn.softplus(logits)
    return targets * jax.nn.softplus(-logits) + away


def focal(
    logits: Float[Array, " B"],
    labels: Float[Array, " B"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Float[Array, " B"]:
    """Focal loss per row: `alpha_t (1 - p_t)^gamma CE`, without label smoothing.

    `p_t` is the probability of the true class, `alpha_t` is `alpha` for members and
    `1 - alpha` for non-members.

    Source: Focal Loss for Dense Object Detection, arXiv 1708.02002, eq. 5.
    """
    towards_truth = logits * (2 * labels - 1)
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    missing = jax.nn.sigmoid(-towards_truth)
    return weight * missing**gamma * jax.nn.softplus(-towards_truth)


def pairwise_hinge(
    logits: Float[Array, " B"],
    labels: Float[Array, " B"],
    included: Bool[Array, " B"],
    *,
    margin: float = 1.0,
) -> Float[Array, ""]:
    """Mean of `relu(margin - (s_i - s_j))` over member i, non-member j.

    Computed in O(B log B) time and O(B) memory: on the active pairs the loss is linear,
    so each score enters with the number of its active pairs, and that number is a
    count in a sorted list. The gradient is exact (0 at the kink). Rows that are not
    included may have any logit, even NaN; without one of the classes the mean is 0.
    """
    member = included & (labels > 0.5)
    nonmember = included & (labels <= 0.5)
    scores = jnp.where(included, logits, 0)
    fixed = jax.lax.stop_gradient(scores)
    # Absent rows sit where no threshold reaches them.
    members = jnp.sort(jnp.where(member, fixed, jnp.inf))
    nonmembers = jnp.sort(jnp.where(nonmember, fixed, -jnp.inf))
    rows = logits.shape[0]
    above = rows - jnp.searchsorted(nonmembers, fixed - margin, side="right")
    below = jnp.searchsorted(members, fixed + margin, side="left")
    pairs_of_member = jnp.where(member, above, 0).astype(scores.dtype)
    pairs_of_nonmember = jnp.where(nonmember, below, 0).astype(scores.dtype)
    total = jnp.sum(pairs_of_member * (margin - scores) + pairs_of_nonmember * scores)
    count = member.sum().astype(scores.dtype) * nonmember.sum().astype(scores.dtype)
    return total / jnp.maximum(count, 1)
