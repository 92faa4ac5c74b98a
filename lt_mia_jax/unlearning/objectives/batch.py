"""The batch that objectives read, what they return, the shift, and the two averages.

Position `t` of the logits predicts token `t + 1`. `shifted` is the only place where
labels meet positions; objectives on predictions must not look at `label_mask` itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, UInt


class TextBatch(NamedTuple):
    """A right-padded batch of texts with supervised targets; a pytree of arrays."""

    input_ids: Int[Array, "B T"]
    """Token ids; anything valid on padding."""
    attention_mask: UInt[Array, "B T"]
    """1 on real tokens, 0 on padding (on the right)."""
    label_mask: UInt[Array, "B T"]
    """1 on tokens that are supervised targets, before the shift; 0 on prompt and
    padding. The first token of a text is never predicted, whatever stands there."""
    weight: Float[Array, "B"]
    """Per-text loss weight; not part of the normalizer. 0 marks a padding row."""
    reference_nll: Float[Array, "B T"] | None = None
    """-log p under the reference, at shifted positions: `cached_reference_nll`."""
    alternative: "TextBatch | None" = None
    """The answer to learn or prefer instead, row by row: a refusal, an inverted fact,
    random labels. Its length may differ; its weights are not read."""
    advantages: Float[Array, "B"] | None = None
    """Of sampled answers: their reward relative to that of others."""
    rewards: Float[Array, "B"] | None = None
    """The rewards, for the history."""


class LossAux(NamedTuple):
    """What an objective returns beside its value.

    `value = sum(weight * per_example) / normalizer`, or 0 if nothing is scored. Hence
    the value of a batch from its parts: `sum(value * normalizer) / sum(normalizer)`.
    """

    per_example: Float[Array, "B"]
    """Each text's unweighted term: the sum over its tokens if the objective is a mean
    over tokens, else the term of the text. 0 for texts without targets or weight."""
    normalizer: Float[Array, ""]
    """Number of scored tokens, or of scored texts, among texts with weight."""
    tokens: Float[Array, "B"]
    """Number of scored tokens in each text."""


Objective = Callable[..., tuple[Float[Array, ""], LossAux]]
"""`objective(params, batch, *, apply_fn, key=None, **settings)`, to be minimized."""

ApplyFn = Callable[..., Any]
"""`LanguageModel.apply`, or anything called like it."""


class Targets(NamedTuple):
    """The token that each position of the logits predicts, if it is a target."""

    ids: Int[Array, "B T"]
    """The following token; meaningless outside the mask."""
    mask: Bool[Array, "B T"]
    """Whether the following token is a target; False in the last column."""


def shifted(batch: TextBatch, weight: Float[Array, "B"] | None = None) -> Targets:
    """Targets at the position that predicts them.

    The labels move one place to the left; slicing the logits instead would copy the
    largest array of the step. Rows of `weight` 0 (default: of the batch) have none.
    """
    mask = jnp.roll(batch.label_mask, -1, axis=1).at[:, -1].set(0) != 0
    weight = batch.weight if weight is None else weight
    return Targets(jnp.roll(batch.input_ids, -1, axis=1), mask & (weight != 0)[:, None])


def sum_tokens(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """Sum of each text's values inside the mask, in float32."""
    # A where and not a product: outside the mask anything may stand.
    return jnp.where(mask, values.astype(jnp.float32), 0.0).sum(axis=1)


def count_tokens(mask: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Number of positions of each text inside the mask."""
    return mask.sum(axis=1).astype(jnp.float32)


def mean_tokens(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """Mean of each text's values inside the mask; 0 for an empty one."""
    return sum_tokens(values, mask) / jnp.maximum(count_tokens(mask), 1.0)


def token_average(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"], weight: Float[Array, "B"]
) -> tuple[Float[Array, ""], LossAux]:
    """Sum of the weighted token values over the batch, divided by the number of tokens.

    Long texts count more than short ones.
    """
    tokens = count_tokens(mask)
    return _average(sum_tokens(values, mask), tokens, weight, tokens)


def text_average(
    terms: Float[Array, "B"], tokens: Float[Array, "B"], weight: Float[Array, "B"]
) -> tuple[Float[Array, ""], LossAux]:
    """Sum of the weighted terms of texts with tokens, divided by their number.

    Terms are finite; a text without scored tokens is left out.
    """
    scored = tokens > 0
    terms = jnp.where(scored, terms, 0.0)
    return _average(terms, scored.astype(jnp.float32), weight, tokens)


def _average(
    terms: Float[Array, "B"],
    counts: Float[Array, "B"],
    weight: Float[Array, "B"],
    tokens: Float[Array, "B"],
) -> tuple[Float[Array, ""], LossAux]:
    weight = weight.astype(jnp.float32)
    # Unweighted, so that weights act on batches of one text too.
    normalizer = jnp.where(weight != 0, counts, 0.0).sum()
    value = (weight * terms).sum() / jnp.where(normalizer != 0, normalizer, 1.0)
    return value, LossAux(terms, normalizer, tokens)
