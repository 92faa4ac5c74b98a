"""Training-free membership scores: token statistics in, one number a text out.

Every score is oriented so that **higher means more likely a member**. A text without a
valid step has no score: NaN. Averages run over valid steps only. The functions take
NumPy statistics (computed in float64, for hosts) and JAX statistics (float32, under
`jit` and `vmap`) alike.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics import TokenStatistics

Scores = Float[Array | np.ndarray, " B"]

WBC_WINDOWS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
"""Windows of the released configuration of WBC (the default)."""
WBC_PAPER_WINDOWS = (2, 3, 4, 5, 8, 11, 15, 21, 29, 40)
"""Windows of the paper's formula, round(2 * 20^(i / 9))."""

_TINY = 1e-8
_LARGEST = float(np.finfo(np.float32).max)


def loss(stats: TokenStatistics) -> Scores:
    """Mean log-probability of the text, `mean(lp)`.

    Source: Yeom et al. 2018, Privacy Risk in Machine Learning.
    """
    return _mean(stats, _real(stats.target_log_prob))


def zlib(stats: TokenStatistics, zlib_bytes: Num[Array | np.ndarray, " B"]) -> Scores:
    """Mean log-probability over compressed size, `mean(lp) / len(zlib(text))`.

    `zlib_bytes` are those of each UTF-8 text compressed by zlib at level 6.

    Source: Carlini et al. 2021, Extracting Training Data from Large Language Models.
    """
    return loss(stats) / _real(zlib_bytes)


def lowercase(
    stats: TokenStatistics,
    lower_stats: TokenStatistics | None = None,
    *,
    lower_loss: Float[Array | np.ndarray, " B"] | None = None,
) -> Scores:
    """Loss relative to the lower-cased text, `-nll(x) / nll(lower(x))`.

    The latter comes from statistics of the same texts in lower case, under the same
    target (their lengths may differ), or is given: `lower_loss`, a mean in nats.

    Raises:
      InputError: neither or both of the two are given.

    Source: Carlini et al. 2021, Extracting Training Data from Large Language Models.
    """
    if (lower_stats is None) == (lower_loss is None):
        raise InputError("lowercase needs exactly one of lower_stats and lower_loss")
    nll = -loss(lower_stats) if lower_stats is not None else _real(lower_loss)
    return loss(stats) / _namespace(nll).maximum(nll, _TINY)


def min_k(stats: TokenStatistics, fraction: float = 0.2) -> Scores:
    """Mean of the `max(1, int(fraction * n))` smallest log-probabilities.

    Source: Detecting Pretraining Data from Large Language Models, arXiv 2310.16789.
    """
    return _mean_of_smallest(stats, _real(stats.target_log_prob), fraction)


def max_k(stats: TokenStatistics, fraction: float = 0.2) -> Scores:
    """Mean of the `max(1, int(fraction * n))` largest log-probabilities.

    Source: Tab-MIA, the mirror image of arXiv 2310.16789.
    """
    return -_mean_of_smallest(stats, -_real(stats.target_log_prob), fraction)


def min_k_plus_plus(stats: TokenStatistics, fraction: float = 0.2) -> Scores:
    """Min-K% of `(lp - mu) / sigma`, standardized by the predicted distribution.

    `sigma = sqrt(max(var, 1e-10))`.

    Source: Min-K%++, arXiv 2404.02936.
    """
    xp = _namespace(stats.target_log_prob)
    sigma = xp.sqrt(xp.maximum(_real(stats.target_var), 1e-10))
    standardized = _above_mean(stats, stats.target_mean) / sigma
    return _mean_of_smallest(stats, standardized, fraction)


def rank(stats: TokenStatistics) -> Scores:
    """Negative mean rank of the true tokens (1 is the most likely).

    Source: GLTR, arXiv 1906.04043.
    """
    return -_mean(stats, _real(stats.target_rank))


def log_rank(stats: TokenStatistics) -> Scores:
    """Negative mean natural logarithm of the ranks.

    Source: DetectGPT, arXiv 2301.11305 (baselines).
    """
    return -_mean(stats, _log_rank(stats))


def entropy(stats: TokenStatistics) -> Scores:
    """Negative mean entropy of the predictions, `mean(mu)`.

    Source: GLTR, arXiv 1906.04043.
    """
    return _mean(stats, _real(stats.target_mean))


def lrr(stats: TokenStatistics) -> Scores:
    """Log-likelihood log-rank ratio, `-sum(lp) / sum(log rank)`.

    A text of nothing but first-ranked tokens has no such ratio. If each is the
    target's argmax it gets the largest float32, the strongest evidence; if some only
    tie with it, as in a uniform prediction, 0.

    Source: DetectLLM, arXiv 2306.05540, which leaves the ratio over 0 undefined.
    """
    xp = _namespace(stats.target_log_prob)
    ranks = _sum(stats, _log_rank(stats))
    ratio = -_sum(stats, _real(stats.target_log_prob)) / xp.maximum(ranks, _TINY)
    predicted = (stats.target_top1 | ~stats.valid).all(axis=1)
    alone = xp.where(predicted, _LARGEST, 0.0)
    return _scored(stats, xp.where(ranks > 0, ratio, alone))


def reference(stats: TokenStatistics) -> Scores:
    """Mean log-probability gained over the reference, in nats per token.

    Source: Carlini et al. 2021, Extracting Training Data from Large Language Models.
    """
    return _mean(stats, _gain(stats))


def ratio(stats: TokenStatistics) -> Scores:
    """Loss relative to the reference's, `-nll_t / max(nll_r, 1e-8)`.

    Source: the ratio baseline of WBC, arXiv 2601.02751.
    """
    nll = -_mean(stats, _real(_need(stats.reference_log_prob)))
    return loss(stats) / _namespace(nll).maximum(nll, _TINY)


def ez(stats: TokenStatistics, *, edge: Literal["code", "member"] = "code") -> Scores:
    """EZ-MIA: gains over losses against the reference, where the target errs.

    On the error zone (valid steps whose true token is not the target's argmax, the
    first scored step left out) with `d = target_log_prob - reference_log_prob`, the
    score is `sum(max(d, 0)) / (sum(max(-d, 0)) + 1e-12)`.

    `edge` decides on texts without evidence, see `ez_edge_cases`. "code" is what the
    authors implement: 0 when there are fewer than two errors or no loss. "member" is
    what the paper argues: the quotient as it stands, and the largest float32 without
    any error.

    Source: Powerful Training-Free Membership Inference Against Autoregressive Language
    Models, arXiv 2601.12104.
    """
    xp = _namespace(stats.target_log_prob)
    gains, losses, errors = _error_zone(stats)
    quotient = gains / (losses + 1e-12)
    if edge == "code":
        score = xp.where((errors < 2) | (losses == 0), 0.0, quotient)
    elif edge == "member":
        score = xp.where(errors == 0, _LARGEST, quotient)
    else:
        raise InputError(f"edge is {edge!r}; expected 'code' or 'member'")
    return _scored(stats, score)


def ez_edge_cases(stats: TokenStatistics) -> Bool[Array | np.ndarray, " B"]:
    """Texts whose EZ-MIA score depends on `edge`: under two errors, or no loss."""
    _, losses, errors = _error_zone(stats)
    return (errors < 2) | (losses == 0)


def count_ez_edge_cases(stats: TokenStatistics) -> int:
    """How many texts with a score are `ez_edge_cases`; 0 without a reference."""
    if stats.reference_log_prob is None:
        return 0
    return int((ez_edge_cases(stats) & stats.valid.any(axis=1)).sum())


def wbc(
    stats: TokenStatistics,
    *,
    windows: Sequence[int] = WBC_WINDOWS,
    repeat_clamped: bool = True,
) -> Scores:
    """Share of windows on which the target beats the reference.

    For each window size `w` (at most the number of steps of the text) the fraction of
    positions whose sum of `target_log_prob - reference_log_prob` over `w` steps is
    strictly positive; the score is the mean over sizes. Sizes beyond the text all
    become its length; each of them counts (as published), or with `repeat_clamped` off
    only one.

    Source: Window-Based Membership Inference Attacks Against Fine-tuned Large Language
    Models, arXiv 2601.02751.
    """
    if not windows or min(windows) < 1:
        raise InputError(f"windows are {tuple(windows)}; expected sizes of at least 1")
    xp = _namespace(stats.target_log_prob)
    # Valid steps first, in order, then zeros.
    order = xp.argsort(~stats.valid, axis=1, stable=True)
    gain = xp.take_along_axis(xp.where(stats.valid, _gain(stats), 0), order, axis=1)
    n = stats.valid.sum(axis=1)
    steps = gain.shape[1]
    whole = gain.sum(axis=1) > 0
    total, weight = xp.zeros_like(gain[:, 0]), xp.zeros_like(gain[:, 0])
    window_sum, size = xp.zeros_like(gain), 0
    clamped_before = xp.zeros(n.shape, bool)
    for wanted in sorted(windows):
        # Adding shifted copies keeps the sum of each window exact where a difference
        # of cumulative sums would leave rounding noise around zero.
        while size < min(wanted, steps):
            shifted = xp.pad(gain[:, size:], ((0, 0), (0, size)))
            window_sum = window_sum + shifted
            size += 1
        inside = np.arange(steps)[None, :] <= (n - wanted)[:, None]
        hits = ((window_sum > 0) & inside).sum(axis=1)
        share = hits / xp.maximum(inside.sum(axis=1), 1)
        clamped = n <= wanted
        counts = xp.ones(n.shape, bool) if repeat_clamped else ~clamped_before
        total = total + xp.where(counts, xp.where(clamped, whole, share), 0)
        weight = weight + counts
        clamped_before = clamped_before | clamped
    return _scored(stats, total / weight)


def binoculars(stats: TokenStatistics) -> Scores:
    """`1 - nll / cross-entropy` with the target as performer, reference as observer.

    The cross-entropy of the target's prediction under the reference is averaged over
    the scored steps (the authors' code also counts the last, unscored position).

    Source: Spotting LLMs With Binoculars, arXiv 2401.12070.
    """
    nll = -loss(stats)
    cross = -_mean(stats, _real(_need(stats.cross_mean)))
    return 1 - nll / _namespace(nll).maximum(cross, _TINY)


def fast_detectgpt(
    stats: TokenStatistics, *, sampling: Literal["target", "reference"] = "target"
) -> Scores:
    """Analytic conditional curvature, `(sum lp - sum m) / sqrt(sum s2)`.

    `m` and `s2` are the mean and variance of the target's log-probability under the
    sampling model.

    Source: Fast-DetectGPT, arXiv 2310.05130.
    """
    if sampling == "target":
        mean, variance = stats.target_mean, stats.target_var
    elif sampling == "reference":
        mean, variance = _need(stats.cross_mean), _need(stats.cross_var)
    else:
        raise InputError(f"sampling is {sampling!r}; expected target or reference")
    xp = _namespace(stats.target_log_prob)
    surplus = _sum(stats, _above_mean(stats, mean))
    spread = xp.sqrt(xp.maximum(_sum(stats, _real(variance)), 1e-10))
    return _scored(stats, surplus / spread)


def _namespace(x: Any) -> Any:
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def _real(x: Any) -> Any:
    """Float64 on the host, float32 on a device."""
    return x.astype(np.float64 if _namespace(x) is np else np.float32)


def _need(x: Any) -> Any:
    if x is None:
        raise InputError(
            "this score compares with a reference model; take the statistics with "
            "reference logits"
        )
    return x


def _scored(stats: TokenStatistics, score: Any) -> Any:
    """NaN where a text has no valid step."""
    return _namespace(score).where(stats.valid.any(axis=1), score, math.nan)


def _sum(stats: TokenStatistics, x: Any) -> Any:
    return _namespace(x).where(stats.valid, x, 0).sum(axis=1)


def _mean(stats: TokenStatistics, x: Any) -> Any:
    count = _namespace(x).maximum(stats.valid.sum(axis=1), 1)
    return _scored(stats, _sum(stats, x) / count)


def _gain(stats: TokenStatistics) -> Any:
    return _real(stats.target_log_prob) - _real(_need(stats.reference_log_prob))


def _above_mean(stats: TokenStatistics, mean: Any) -> Any:
    """`lp - mean`; 0 where float32 cannot tell them apart, as in a uniform prediction.

    There the spread is at its floor, and would turn rounding into a score.
    """
    xp = _namespace(stats.target_log_prob)
    mean = _real(mean)
    above = _real(stats.target_log_prob) - mean
    return xp.where(xp.abs(above) <= 1e-6 * xp.abs(mean), 0.0, above)


def _log_rank(stats: TokenStatistics) -> Any:
    xp = _namespace(stats.target_rank)
    return xp.log(xp.maximum(_real(stats.target_rank), 1))


def _mean_of_smallest(stats: TokenStatistics, x: Any, fraction: float) -> Any:
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}; expected 0 < fraction <= 1")
    xp = _namespace(x)
    steps = x.shape[1]
    # From a table, so that float32 rounding cannot change `int(fraction * n)`.
    table = np.array([max(1, int(fraction * n)) for n in range(steps + 1)])
    count = xp.asarray(table)[stats.valid.sum(axis=1)]
    ordered = xp.sort(xp.where(stats.valid, x, math.inf), axis=1)
    chosen = np.arange(steps)[None, :] < count[:, None]
    # Steps beyond the valid ones are infinite and never chosen when there is one.
    chosen = chosen & stats.valid.any(axis=1)[:, None]
    return _scored(stats, xp.where(chosen, ordered, 0).sum(axis=1) / count)


def _error_zone(stats: TokenStatistics) -> tuple[Any, Any, Any]:
    """Sum of gains, sum of losses, and number of steps of the error zone."""
    xp = _namespace(stats.target_log_prob)
    scored_before = stats.valid.cumsum(axis=1) > 1
    zone = stats.valid & ~stats.target_top1 & scored_before
    gain = xp.where(zone, _gain(stats), 0)
    gains = xp.maximum(gain, 0).sum(axis=1)
    losses = xp.maximum(-gain, 0).sum(axis=1)
    return gains, losses, zone.sum(axis=1)
