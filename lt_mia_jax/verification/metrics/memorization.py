"""How much of its answers a model still knows, item by item.

One jitted pass reduces logits to three numbers a token; everything after it runs on the
host in float64. The statistics of a span inside the answer (the value that a template
carries) are those of a `label_mask` that marks the span alone.

An item without a scored token has no value: NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics import token_statistics
from lt_mia_jax.verification.metrics.checks import PerItem

DropFinal = bool | Bool[np.ndarray, " B"]


class AnswerStatistics(NamedTuple):
    """Statistics of each prediction; step t predicts token t + 1.

    Entries of unscored steps are zero, the last step always.
    """

    nll: Any
    """Float `"B T"`: -log p of the true token, in nats."""
    match: Any
    """Bool `"B T"`: the true token is the argmax (lowest index among equals)."""
    rank: Any
    """Int `"B T"`: 1 + number of tokens that the model prefers strictly."""
    valid: Any
    """Bool `"B T"`: token t + 1 is a supervised target."""


@jax.jit
def answer_statistics(
    logits: Float[Array | np.ndarray, "B T V"],
    input_ids: Integer[Array | np.ndarray, "B T"],
    label_mask: Integer[Array | np.ndarray, "B T"] | Bool[Array | np.ndarray, "B T"],
) -> AnswerStatistics:
    """Teacher-forced statistics of the marked tokens, reduced in float32.

    Args:
      logits: position t scores token t + 1.
      input_ids: the texts; a marked id outside the vocabulary gives NaN.
      label_mask: nonzero on the tokens to score, before the shift. A mark on the first
        token of a row has no prediction and is ignored.
    """
    stats = token_statistics(logits, None, input_ids, label_mask, k=0)
    return AnswerStatistics(
        nll=jnp.where(stats.valid, -stats.target_log_prob, 0.0),
        match=stats.target_top1,
        rank=stats.target_rank,
        valid=stats.valid,
    )


def mean_nll(stats: AnswerStatistics) -> PerItem:
    """`A`, the mean -log p over the tokens of each answer, end token included."""
    stats = _host(stats)
    return _mean(stats.nll, stats.valid)


def probability(stats: AnswerStatistics) -> PerItem:
    """`exp(-A)`, the geometric mean of the token probabilities of each answer.

    Source: TOFU, arXiv 2401.06121, section 2.2.
    """
    return np.exp(-mean_nll(stats))


def exact_memorization(
    stats: AnswerStatistics, *, drop_final: DropFinal = True
) -> PerItem:
    """Fraction of each answer's tokens that are the argmax, teacher forced.

    `drop_final` leaves out the last label of each answer, its end token; an array says
    of which answers.

    Source: Tirumala et al., arXiv 2205.10770; without the end token as in
    OpenUnlearning, arXiv 2506.12618.
    """
    stats = _host(stats)
    counted = without_last(stats.valid, drop_final)
    return _mean(stats.match.astype(np.float64), counted)


def extraction_strength(
    stats: AnswerStatistics, *, drop_final: DropFinal = True
) -> PerItem:
    """`1 - k / L`: how short a prefix makes the model reproduce the rest.

    `k` is the shortest prefix after which every argmax is right; an answer whose last
    scored token is wrong has k = L and strength 0 (OpenUnlearning stops at 1 / L).

    `drop_final` as in `exact_memorization`.

    Source: Carlini et al., arXiv 2012.07805; OpenUnlearning, arXiv 2506.12618.
    """
    stats = _host(stats)
    answer = without_last(stats.valid, drop_final)
    position = answer.cumsum(axis=1)  # 1, 2, ... on scored tokens
    prefix = np.where(answer & ~stats.match, position, 0).max(axis=1)
    length = answer.sum(axis=1)
    strength = 1 - prefix / np.maximum(length, 1)
    return np.where(length > 0, strength, np.nan)


def slot_accuracy(stats: AnswerStatistics) -> PerItem:
    """1 where every token of the marked span is the argmax, else 0.

    The `label_mask` marks the value alone: template words are predicted by any model of
    the language and lift exact memorization, extraction strength and ROUGE.
    """
    stats = _host(stats)
    right = (stats.match | ~stats.valid).all(axis=1).astype(np.float64)
    return np.where(stats.valid.any(axis=1), right, np.nan)


def slot_log_rank(stats: AnswerStatistics) -> PerItem:
    """Mean natural logarithm of the vocabulary ranks on the marked span.

    0 where every token ranks first. Unlike accuracy it still moves when the value is
    no longer the argmax.
    """
    stats = _host(stats)
    return _mean(np.log(np.maximum(stats.rank, 1)), stats.valid)


def _host(stats: AnswerStatistics) -> AnswerStatistics:
    valid = np.asarray(stats.valid, dtype=bool)
    nll = np.asarray(stats.nll, dtype=np.float64)
    if valid.ndim != 2 or len(valid) == 0:
        raise InputError(
            f"answers have shape {list(valid.shape)}; expected items by tokens, at "
            "least one item"
        )
    broken = np.nonzero((np.isnan(nll) & valid).any(axis=1))[0]
    if broken.size:
        raise InputError(
            f"-log p is NaN in {broken.size} of {len(nll)} answers, first "
            f"{broken[:5].tolist()}; the model has diverged, or an id is outside its "
            "vocabulary"
        )
    match = np.asarray(stats.match, dtype=bool)
    return AnswerStatistics(nll, match, np.asarray(stats.rank), valid)


def without_last(
    valid: Bool[np.ndarray, "B T"], drop: DropFinal
) -> Bool[np.ndarray, "B T"]:
    """The marks of `valid` without the last one of each row, where `drop` says so."""
    dropped = np.broadcast_to(drop, len(valid)).astype(int)
    position = valid.cumsum(axis=1)
    return valid & (position <= position[:, -1:] - dropped[:, None])


def _mean(x: np.ndarray, where: np.ndarray) -> PerItem:
    count = where.sum(axis=1)
    total = np.where(where, x, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
