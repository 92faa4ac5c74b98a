"""Meta-DMoE: experts of several domains teach a student in one step at test time.

A transformer layer merges the features of frozen experts; the student takes one step
towards the result on unlabeled texts. Both are trained so that the student after the
step predicts well (`outer_loss`, differentiated through the step).

Source: Meta-DMoE ("Adapting to Domain Shift by Meta-Distillation from
Mixture-of-Experts"), arXiv 2210.03885. Kept: the aggregator, the inner step, and
leaving out the expert of the sample's own domain in training. Not kept: its backbones
and data.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Bool, Float, Int
from lt_mia_jax.transfer.adapt.features import Features


class Aggregator(nn.Module):
    """A pre-norm transformer layer over the experts of each text, then their mean.

    There are no positions: the order of the experts does not matter.
    """

    heads: int = 16
    """Heads of the attention between experts; divides the width."""
    expansion: int = 4
    """Width of the feed-forward, in widths of the features."""

    @nn.compact
    def __call__(
        self,
        experts: Float[Array, "E B D"],
        keep: Bool[Array, "E"] | Bool[Array, "E B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Features of each text, of the kept experts only.

        `keep` is False for experts to leave out, for all texts or for each; at least
        one must be kept. None keeps all.
        """
        width = experts.shape[-1]
        x = experts.swapaxes(0, 1)
        if keep is None:
            keep = jnp.ones(len(experts), bool)
        kept = jnp.broadcast_to(keep.T, x.shape[:2])
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        mixed = attention(nn.LayerNorm(name="norm")(x), mask=kept[:, None, None, :])
        x = x + mixed
        middle = nn.LayerNorm(name="feed_forward_norm")(x)
        middle = nn.gelu(nn.Dense(self.expansion * width, name="up")(middle))
        x = x + nn.Dense(width, name="down")(middle)
        return jnp.mean(x, axis=1, where=kept[..., None])


def adapt(
    params: Any,
    inputs: Any,
    target: Float[Array, "B D"],
    *,
    features: Features,
    rate: float | Float[Array, ""],
) -> Any:
    """The student after one step of gradient descent towards `target`.

    `params - rate * gradient of mean((features(params, inputs) - target)^2)`, in the
    dtype of each leaf; rate 0 returns `params`.

    Example:
      >>> x = jnp.ones((1, 1))
      >>> adapt(jnp.array([3.0]), x, x, rate=0.25, features=lambda p, x: p[None] * x)
      Array([2.], dtype=float32)
    """

    def loss(p: Any) -> Array:
        return jnp.mean(jnp.square(features(p, inputs) - target))

    def moved(p: Array, g: Array) -> Array:
        step = p.astype(jnp.float32) - rate * g.astype(jnp.float32)
        return step.astype(p.dtype)

    return jax.tree.map(moved, params, jax.grad(loss)(params))


class Episode(NamedTuple):
    """One domain in meta-training."""

    support: Any
    """Inputs without labels, of B texts."""
    experts: Float[Array, "E B D"]
    """Features that the frozen experts give them."""
    keep: Bool[Array, "E"]
    """False for the expert of this domain."""
    query: Any
    """Inputs of the same domain, for which there are labels."""
    labels: Int[Array, "Q"]
    """Classes of the query."""


def outer_loss(
    params: Mapping[str, Any],
    episode: Episode,
    *,
    features: Features,
    aggregator: Aggregator,
    head: nn.Module,
    rate: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Mean cross-entropy of the query after the step on the support set, nats.

    Its gradient passes through `adapt`, and so trains all of `params`: the parameters
    of the "student", of the "aggregator" and of the "head" (a module from features to
    logits).
    """
    target = aggregator.apply(
        {"params": params["aggregator"]}, episode.experts, episode.keep
    )
    student = adapt(
        params["student"],
        episode.support,
        jnp.asarray(target),
        features=features,
        rate=rate,
    )
    logits = head.apply({"params": params["head"]}, features(student, episode.query))
    nll = optax.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(logits), episode.labels
    )
    return nll.mean()
