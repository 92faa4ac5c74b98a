"""Meta-DMoE: experts of several domains teach a student in one step at test time.

A transformer layer merges the features of frozen experts; the student takes one step
towards the result on unlabeled texts. Both are trained through that step.

Source: Meta-DMoE ("Adapting to Domain Shift by Meta-Distillation from
Mixture-of-Experts"), arXiv 2210.03885. Kept: the aggregator, the inner step, leaving
out the expert of the text's own domain in training. Not kept: backbones and data.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Bool, Float, Int
from lt_mia_jax.training.transforms.products import add
from lt_mia_jax.transfer.adapt.features import Features


class Aggregator(nn.Module):
    """A pre-norm transformer layer over the experts of each text, then their mean.

    There are no positions: the order of the experts does not matter.
    """

    heads: int = 16
    """Heads of the attention between experts; divides the width."""

    @nn.compact
    def __call__(
        self,
        experts: Float[Array, "E B D"],
        keep: Bool[Array, "E"] | Bool[Array, "E B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Features of each text, of the experts whose `keep` is True; None keeps all.

        At least one must be kept for each text.
        """
        x, width = experts.swapaxes(0, 1), experts.shape[-1]
        keep = jnp.ones(len(experts), bool) if keep is None else keep
        kept = jnp.broadcast_to(keep.T, x.shape[:2])
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = x + attention(nn.LayerNorm(name="norm")(x), mask=kept[:, None, None, :])
        middle = nn.LayerNorm(name="feed_forward_norm")(x)
        middle = nn.gelu(nn.Dense(4 * width, name="up")(middle))
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

    `params - rate * gradient of mean((features(params, inputs) - target)^2)`.

    Example:
      >>> x = jnp.ones((1, 1))
      >>> adapt(jnp.array([3.0]), x, x, rate=0.25, features=lambda p, x: p[None] * x)
      Array([2.], dtype=float32)
    """

    def loss(p: Any) -> Array:
        return jnp.mean(jnp.square(features(p, inputs) - target))

    return add(params, -rate, jax.grad(loss)(params))


class Episode(NamedTuple):
    """One domain in meta-training."""

    support: Any
    """Inputs of B texts without labels."""
    experts: Float[Array, "E B D"]
    """Features that the frozen experts give them."""
    keep: Bool[Array, "E"]
    """False for the expert of this domain."""
    query: Any
    """Inputs of the same domain with `labels`."""
    labels: Int[Array, "Q"]


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

    Its gradient passes through `adapt`, and trains all of `params`: "student",
    "aggregator" and "head" (a module from features to logits).
    """
    own = {"params": params["aggregator"]}
    target = jnp.asarray(aggregator.apply(own, episode.experts, episode.keep))
    step = partial(adapt, features=features, rate=rate)
    student = step(params["student"], episode.support, target)
    logits = head.apply({"params": params["head"]}, features(student, episode.query))
    nll = optax.softmax_cross_entropy_with_integer_labels
    return nll(jnp.asarray(logits), episode.labels).mean()
