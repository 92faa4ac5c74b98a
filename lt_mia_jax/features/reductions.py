"""Reductions over the vocabulary for a block of rows, whole or in chunks."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.features.layout import FeatureLayout

_LANES = 64
"""Queries are padded to this multiple: CPU code for other widths is not vectorised."""
_FEW = 8
"""Fewer queries than this are not worth the padding."""
_COUNT_CHUNK = 256
"""Entries compared per inner step on a CPU; keeps the counters in registers."""


def row_statistics(
    logits: list[Float[Array, "N V"]],
    true: Int[Array, " N"],
    k: int,
    chunk: int,
    log_probabilities: bool,
) -> dict[str, Array]:
    """All statistics of N steps, by field name of `TokenStatistics`.

    Three passes: extremes and normalisers; means and ranks, which need them; variances
    around the means.

    Args:
      logits: one or two float32 arrays (target, reference) without negative zeros.
      true: next tokens.
      k: length of the lists; 0 leaves `columns` out.
      chunk: vocabulary entries visited at a time.
      log_probabilities: normalise before the columns are formed.
    """
    pairwise = len(logits) == 2
    vocabulary = logits[0].shape[-1]
    z_true = [_pick(x, true[:, None])[:, 0] for x in logits]
    # Without barriers the compiler merges a pass into the next and recomputes its
    # per-row results for every vocabulary entry (8 times slower on a CPU).
    lse, tops, bottom = lax.optimization_barrier(_extremes(logits, max(k, 1), chunk))

    queries = [[z[:, None]] for z in z_true]
    differences: list[Array] = []
    if k > 0 and pairwise:
        top_other = _pick(logits[1], tops[0][1])
        bottom_other = _pick(logits[1], bottom[1])
        queries[0].append(_pick(logits[0], tops[1][1]))
        queries[1] += [top_other, bottom_other]
        differences = [
            (z_true[0] - z_true[1])[:, None],
            tops[0][0] - top_other,
            bottom[0] - bottom_other,
        ]
        if log_probabilities:
            differences = [x - (lse[0] - lse[1])[:, None] for x in differences]
    joined = [jnp.concatenate(q, axis=1) for q in queries]
    sums, counts = lax.optimization_barrier(_moments(logits, lse, joined, chunk))
    ranks = [1 + count for count in counts]
    variances = _variances(logits, lse, sums, chunk)

    found = {
        "lp_t": z_true[0] - lse[0],
        "mu_t": sums["mu_t"],
        "var_t": variances["var_t"],
        "rank_t": ranks[0][:, 0],
        "hit_t": tops[0][1][:, 0] == true,
    }
    if pairwise:
        found |= {
            "lp_r": z_true[1] - lse[1],
            "mu_r": sums["mu_r"],
            "xmu": sums["xmu"],
            "xvar": variances["xvar"],
            "rank_r": ranks[1][:, 0],
        }
    if differences:
        found["columns"] = _columns(differences, ranks, vocabulary, k)
    return found


def _columns(
    differences: list[Array], ranks: list[Array], vocabulary: int, k: int
) -> Array:
    """Packed LT-MIA columns in the order of `FeatureLayout.pack`.

    Args:
      differences: target minus reference logit of the true token, head and tail.
      ranks: in the target of (true, reference's head), in the reference of (true,
        target's head, target's tail).
      vocabulary: V of the normalised rank.
      k: length of the lists.
    """
    in_target, in_reference = (_normalised_rank(r, vocabulary) for r in ranks)
    truth, head, tail = differences
    truth = [truth, in_target[:, :1], in_reference[:, :1]]
    head = [head, in_reference[:, 1 : k + 1], in_target[:, 1:]]
    tail = [tail, in_reference[:, k + 1 :]]
    slots = [jnp.stack(x, axis=-1) for x in (truth, head, tail)]
    columns = jnp.concatenate([x.reshape(x.shape[0], -1) for x in slots], axis=1)
    assert columns.shape[1] == FeatureLayout(k).packed_width
    return columns


def _normalised_rank(rank: Array, vocabulary: int) -> Array:
    return jnp.log1p(rank.astype(jnp.float32)) / math.log(vocabulary + 1)


def _pick(x: Array, index: Array) -> Array:
    """`x[n, index[n, j]]`; NaN where the index is outside the vocabulary."""
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=jnp.nan)


def _fold(step: Any, carry: Any, arrays: list[Array], chunk: int) -> Any:
    """Fold `step(carry, pieces, start, fresh)` over chunks of the last axis.

    The last chunk is moved back to stay inside; `fresh` marks entries not yet seen.
    """
    size = arrays[0].shape[-1]
    if chunk >= size:
        return step(carry, arrays, 0, None)

    def body(carry: Any, index: Array) -> tuple[Any, None]:
        start = jnp.minimum(index * chunk, size - chunk)
        pieces = [lax.dynamic_slice_in_dim(x, start, chunk, -1) for x in arrays]
        fresh = (start + jnp.arange(chunk) >= index * chunk)[None, :]
        return step(carry, pieces, start, fresh), None

    steps = jnp.arange(-(-size // chunk), dtype=jnp.int32)
    return lax.scan(body, carry, steps)[0]


def _extremes(
    logits: list[Array], k: int, chunk: int
) -> tuple[list[Array], list[tuple[Array, Array]], tuple[Array, Array]]:
    """Per model logsumexp and the k largest; for the first model the k smallest too."""
    rows = logits[0].shape[0]
    lowest = jnp.full((rows,), -jnp.inf)
    no_list = (jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32))

    def step(carry: Any, pieces: list[Array], start: Any, fresh: Any) -> Any:
        maxima, sums, lists = carry
        if fresh is not None:
            pieces = [jnp.where(fresh, x, -jnp.inf) for x in pieces]
        new_maxima = [
            jnp.maximum(m, x.max(1)) for m, x in zip(maxima, pieces, strict=True)
        ]
        new_sums = [
            s * jnp.exp(old - new) + jnp.exp(x - new[:, None]).sum(1)
            for s, old, new, x in zip(sums, maxima, new_maxima, pieces, strict=True)
        ]
        negated = -pieces[0]
        if fresh is not None:
            negated = jnp.where(fresh, negated, -jnp.inf)
        merged = [
            _merge(old, x, start, fresh)
            for old, x in zip(lists, [*pieces, negated], strict=True)
        ]
        return new_maxima, new_sums, merged

    zeros = [jnp.zeros((rows,)) for _ in logits]
    carry = ([lowest for _ in logits], zeros, [no_list] * (len(logits) + 1))
    maxima, sums, lists = _fold(step, carry, logits, chunk)
    lse = [m + jnp.log(s) for m, s in zip(maxima, sums, strict=True)]
    return lse, lists[:-1], (-lists[-1][0], lists[-1][1])


def _merge(
    old: tuple[Array, Array], piece: Array, start: Any, fresh: Any
) -> tuple[Array, Array]:
    """The k largest of a running list and a new piece, earlier entries first."""
    k = old[0].shape[1]
    values, index = lax.top_k(piece, min(k, piece.shape[1]))
    if fresh is None:
        return values, index
    values = jnp.concatenate([old[0], values], 1)
    index = jnp.concatenate([old[1], index + start], 1)
    values, place = lax.top_k(values, k)
    return values, jnp.take_along_axis(index, place, 1)


def _moments(
    logits: list[Array], lse: list[Array], queries: list[Array], chunk: int
) -> tuple[dict[str, Array], list[Array]]:
    """Means of log-probabilities, and for each query the number of greater logits."""

    def step(carry: Any, pieces: list[Array], start: Any, fresh: Any) -> Any:
        sums, counts = carry
        if fresh is not None:
            pieces = [jnp.where(fresh, x, -jnp.inf) for x in pieces]
        lp = [x - n[:, None] for x, n in zip(pieces, lse, strict=True)]
        new = {"mu_t": _expected(lp[0], lp[0])}
        if len(lp) == 2:
            new |= {"mu_r": _expected(lp[1], lp[1]), "xmu": _expected(lp[1], lp[0])}
        counts = [
            old + _count_greater(x, q)
            for old, x, q in zip(counts, pieces, queries, strict=True)
        ]
        return {name: sums[name] + new[name] for name in sums}, counts

    names = ("mu_t", "mu_r", "xmu") if len(logits) == 2 else ("mu_t",)
    zeros = {name: jnp.zeros_like(lse[0]) for name in names}
    counts = [jnp.zeros(q.shape, jnp.int32) for q in queries]
    return _fold(step, (zeros, counts), logits, chunk)


def _variances(
    logits: list[Array], lse: list[Array], means: dict[str, Array], chunk: int
) -> dict[str, Array]:
    """Variances from centred values, which cannot cancel and are never negative."""

    def step(carry: Any, pieces: list[Array], start: Any, fresh: Any) -> Any:
        if fresh is not None:
            pieces = [jnp.where(fresh, x, -jnp.inf) for x in pieces]
        lp = [x - n[:, None] for x, n in zip(pieces, lse, strict=True)]
        new = {"var_t": _expected(lp[0], (lp[0] - means["mu_t"][:, None]) ** 2)}
        if len(lp) == 2:
            centred = lp[0] - means["xmu"][:, None]
            new["xvar"] = _expected(lp[1], centred**2)
        return {name: carry[name] + new[name] for name in carry}

    names = ("var_t", "xvar") if len(logits) == 2 else ("var_t",)
    zeros = {name: jnp.zeros_like(lse[0]) for name in names}
    return _fold(step, zeros, logits, chunk)


def _expected(log_weights: Array, values: Array) -> Array:
    """Sum of `exp(log_weights) * values`; entries of weight zero do not count."""
    weights = jnp.exp(log_weights)
    return jnp.where(weights > 0, weights * values, 0.0).sum(1)


def _count_greater(values: Array, queries: Array) -> Array:
    """For each query `"N Q"` the number of strictly greater values `"N V"`."""
    return lax.platform_dependent(
        values, queries, cpu=_count_by_rows, default=_count_at_once
    )


def _count_at_once(values: Array, queries: Array) -> Array:
    """One fused compare-and-sum; no V x Q array exists on an accelerator."""
    greater = values[:, None, :] > queries[:, :, None]
    return greater.sum(2, dtype=jnp.int32)


def _count_by_rows(values: Array, queries: Array) -> Array:
    """Row by row with the queries as minor axis, an order the CPU compiler vectorises.

    About 15 times faster there than the plain compare-and-sum (50,257 entries,
    64 queries).
    """
    wanted = queries.shape[1]
    if wanted < _FEW:
        return _count_at_once(values, queries)
    queries = jnp.pad(queries, ((0, 0), (0, -wanted % _LANES)))
    size = values.shape[1]
    whole = size // _COUNT_CHUNK

    def count(piece: Array, query: Array) -> Array:
        return (piece[:, None] > query[None, :]).sum(0, dtype=jnp.int32)

    def one_row(row: tuple[Array, Array]) -> Array:
        value, query = row
        chunks = value[: whole * _COUNT_CHUNK].reshape(whole, _COUNT_CHUNK)
        rest = count(value[whole * _COUNT_CHUNK :], query)
        if whole == 0:
            return rest
        return lax.scan(lambda sum_, x: (sum_ + count(x, query), None), rest, chunks)[0]

    return lax.map(one_row, (values, queries))[:, :wanted]
