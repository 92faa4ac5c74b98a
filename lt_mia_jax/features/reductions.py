"""Reductions over the vocabulary for a block of rows, whole or in chunks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.features import unshared
from lt_mia_jax.features.layout import FeatureLayout

_FARTHEST = 65504.0
"""The largest 16-bit float."""
_TILE = 64
"""Entries of a tile whose maximum stands for it when the largest are looked for."""
_LANES = 64
"""Queries are padded to this multiple: CPU code for other widths is not vectorized."""
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
    rest: unshared.Rest = (),
) -> dict[str, Array]:
    """All statistics of N steps, by field name of `TokenStatistics`.

    Three passes: extremes and normalizers; means and ranks, which need them; variances
    around the means. `logits` are one or two float32 arrays (target, reference) without
    negative zeros, `true` the next tokens, `chunk` the vocabulary entries visited at a
    time. With k = 0, `columns` are left out. `rest` are entries that one model has
    alone (`features.unshared`), empty where there are none.
    """
    pairwise = len(logits) == 2
    vocabulary = logits[0].shape[-1]
    z_true = [_pick(x, true[:, None])[:, 0] for x in logits]
    # Without barriers the compiler merges a pass into the next and recomputes its
    # per-row results for every vocabulary entry (8 times slower on a CPU).
    lse, tops, bottom = lax.optimization_barrier(_extremes(logits, max(k, 1), chunk))
    shared = lse
    if rest:
        lse = lax.optimization_barrier(unshared.normalizers(shared, rest))

    queries = [[z[:, None]] for z in z_true]
    differences: list[Array] = []
    if k > 0 and pairwise:
        top_other = _pick(logits[1], tops[0][1])
        bottom_other = _pick(logits[1], bottom[1])
        queries[0].append(_pick(logits[0], tops[1][1]))
        queries[1] += [top_other, bottom_other]
        shift = (lse[0] - lse[1])[:, None] if log_probabilities else 0.0
        differences = [
            _difference(z_true[0][:, None], z_true[1][:, None], shift),
            _difference(tops[0][0], top_other, shift),
            _difference(bottom[0], bottom_other, shift),
        ]
    joined = [jnp.concatenate(q, axis=1) for q in queries]
    sums, counts = lax.optimization_barrier(_moments(logits, lse, joined, chunk))
    ranks = [1 + count for count in counts]
    if rest:
        sums = lax.optimization_barrier(unshared.with_rest(sums, shared, lse, rest))
    variances = _variances(logits, lse, sums, chunk)
    if rest:
        variances = unshared.with_rest(variances, shared, lse, rest, sums)

    found = {
        "target_log_prob": z_true[0] - lse[0],
        "target_mean": sums["target_mean"],
        "target_var": variances["target_var"],
        "target_rank": ranks[0][:, 0],
        "target_top1": tops[0][1][:, 0] == true,
    }
    if pairwise:
        found |= {
            "reference_log_prob": z_true[1] - lse[1],
            "reference_mean": sums["reference_mean"],
            "cross_mean": sums["cross_mean"],
            "cross_var": variances["cross_var"],
            "reference_rank": ranks[1][:, 0],
        }
    if differences:
        found["columns"] = _columns(differences, ranks, vocabulary, k)
    return found


def _difference(target: Array, reference: Array, shift: Any) -> Array:
    """Target minus reference less `shift`; 0 where both models mask the entry (-inf).

    An entry that one of them masks gets the largest difference that a store keeps.
    """
    masked = (target == -jnp.inf) & (reference == -jnp.inf)
    difference = target - reference - shift
    clipped = jnp.clip(difference, -_FARTHEST, _FARTHEST)
    finite = jnp.isfinite(target) & jnp.isfinite(reference)
    return jnp.where(masked, 0.0, jnp.where(finite, difference, clipped))


def _columns(
    differences: list[Array], ranks: list[Array], vocabulary: int, k: int
) -> Array:
    """Packed LT-MIA columns in the order of `FeatureLayout.pack`.

    Args:
      differences: target minus reference logit of the true token, top k and bottom k.
      ranks: in the target of (true, reference's top k), in the reference of (true,
        target's top k, target's bottom k).
      vocabulary: V of the normalized rank.
      k: length of the lists.
    """
    in_target, in_reference = (
        jnp.log1p(rank.astype(jnp.float32)) / math.log(vocabulary + 1) for rank in ranks
    )
    truth, top, bottom = differences
    truth = [truth, in_target[:, :1], in_reference[:, :1]]
    top = [top, in_reference[:, 1 : k + 1], in_target[:, 1:]]
    bottom = [bottom, in_reference[:, k + 1 :]]
    slots = [jnp.stack(x, axis=-1) for x in (truth, top, bottom)]
    columns = jnp.concatenate([x.reshape(x.shape[0], -1) for x in slots], axis=1)
    assert columns.shape[1] == FeatureLayout(k).packed_width
    return columns


def _pick(x: Array, index: Array) -> Array:
    """`x[n, index[n, j]]`; NaN where the index is outside the vocabulary."""
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=jnp.nan)


def _fold(step: Any, carry: Any, arrays: list[Array], chunk: int) -> Any:
    """Fold `step(carry, pieces, start, fresh)` over chunks of the last axis.

    The last chunk is moved back to stay inside; `fresh` marks entries not yet seen, the
    others are -inf.
    """
    size = arrays[0].shape[-1]
    if chunk >= size:
        return step(carry, arrays, 0, None)

    def body(carry: Any, index: Array) -> tuple[Any, None]:
        start = jnp.minimum(index * chunk, size - chunk)
        pieces = [lax.dynamic_slice_in_dim(x, start, chunk, -1) for x in arrays]
        fresh = (start + jnp.arange(chunk) >= index * chunk)[None, :]
        pieces = [jnp.where(fresh, x, -jnp.inf) for x in pieces]
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
    values, index = _largest(piece, min(k, piece.shape[1]))
    if fresh is None:
        return values, index
    values = jnp.concatenate([old[0], values], 1)
    index = jnp.concatenate([old[1], index + start], 1)
    values, place = lax.top_k(values, k)
    return values, jnp.take_along_axis(index, place, 1)


def _largest(x: Float[Array, "N V"], k: int) -> tuple[Array, Array]:
    """`lax.top_k` of each row, its order among equals included, about 4 times faster.

    Each of the k largest lies in one of the k tiles with the largest maxima, so only
    those tiles are searched. It holds among equals too, as long as tiles are runs of
    neighbors and the lower tile comes first: of the tiles whose maximum is the k-th
    value, the lowest ones are taken, and these hold the lowest entries of that value.
    """
    rows, size = x.shape
    tiles = size // _TILE
    if tiles <= 2 * k:
        values, index = lax.top_k(x, k)
        return values, index
    whole = tiles * _TILE
    maxima = x[:, :whole].reshape(rows, tiles, _TILE).max(2)
    starts = jnp.sort(lax.top_k(maxima, k)[1], axis=1) * _TILE

    def read(row: Array, starts: Array) -> Array:
        return jax.vmap(lambda at: lax.dynamic_slice(row, (at,), (_TILE,)))(starts)

    inside = jnp.arange(_TILE, dtype=jnp.int32)
    index = (starts[:, :, None] + inside[None, None, :]).reshape(rows, -1)
    after = jnp.arange(whole, size, dtype=jnp.int32)
    rest = jnp.broadcast_to(after, (rows, size - whole))
    candidates = jax.vmap(read)(x, starts).reshape(rows, -1)
    values, place = lax.top_k(jnp.concatenate([candidates, x[:, whole:]], 1), k)
    index = jnp.concatenate([index, rest], 1)
    return values, jnp.take_along_axis(index, place, 1)


def _moments(
    logits: list[Array], lse: list[Array], queries: list[Array], chunk: int
) -> tuple[dict[str, Array], list[Array]]:
    """Means of log-probabilities, and for each query the number of greater logits."""

    def step(carry: Any, pieces: list[Array], start: Any, fresh: Any) -> Any:
        sums, counts = carry
        lp = [x - n[:, None] for x, n in zip(pieces, lse, strict=True)]
        new = {"target_mean": _expected(lp[0], lp[0])}
        if len(lp) == 2:
            new |= {
                "reference_mean": _expected(lp[1], lp[1]),
                "cross_mean": _expected(lp[1], lp[0]),
            }
        more = lax.platform_dependent(
            pieces, queries, cpu=_count_by_rows, default=_count_at_once
        )
        counts = [old + count for old, count in zip(counts, more, strict=True)]
        return {name: sums[name] + new[name] for name in sums}, counts

    names = ("target_mean", "reference_mean", "cross_mean")[: 2 * len(logits) - 1]
    zeros = {name: jnp.zeros_like(lse[0]) for name in names}
    counts = [jnp.zeros(q.shape, jnp.int32) for q in queries]
    return _fold(step, (zeros, counts), logits, chunk)


def _variances(
    logits: list[Array], lse: list[Array], means: dict[str, Array], chunk: int
) -> dict[str, Array]:
    """Variances from centered values, which cannot cancel and are never negative."""

    def step(carry: Any, pieces: list[Array], start: Any, fresh: Any) -> Any:
        lp = [x - n[:, None] for x, n in zip(pieces, lse, strict=True)]
        new = {
            "target_var": _expected(lp[0], (lp[0] - means["target_mean"][:, None]) ** 2)
        }
        if len(lp) == 2:
            centered = lp[0] - means["cross_mean"][:, None]
            new["cross_var"] = _expected(lp[1], centered**2)
        return {name: carry[name] + new[name] for name in carry}

    zeros = {n: jnp.zeros_like(lse[0]) for n in ("target_var", "cross_var")[: len(lse)]}
    return _fold(step, zeros, logits, chunk)


def _expected(log_weights: Array, values: Array) -> Array:
    """Sum of `exp(log_weights) * values`; entries of weight zero do not count."""
    weights = jnp.exp(log_weights)
    return jnp.where(weights > 0, weights * values, 0.0).sum(1)


def _count_at_once(values: list[Array], queries: list[Array]) -> list[Array]:
    """For each query `"N Q"` of a model the number of greater values `"N V"`.

    One fused compare-and-sum a model; no V x Q array exists on an accelerator.
    """
    return [
        (x[:, None, :] > q[:, :, None]).sum(2, dtype=jnp.int32)
        for x, q in zip(values, queries, strict=True)
    ]


def _count_by_rows(values: list[Array], queries: list[Array]) -> list[Array]:
    """Row by row with the queries as minor axis, an order the CPU compiler vectorizes.

    About 15 times faster there than the plain compare-and-sum (50,257 entries,
    64 queries). The queries of both models share one pass, each in its own lanes.
    """
    widths = [q.shape[1] for q in queries]
    wanted = sum(widths)
    if wanted < _FEW:
        return _count_at_once(values, queries)
    joined = jnp.pad(jnp.concatenate(queries, 1), ((0, 0), (0, -wanted % _LANES)))
    of_first = (jnp.arange(joined.shape[1]) < widths[0])[None, :]
    size = values[0].shape[1]
    whole = size // _COUNT_CHUNK * _COUNT_CHUNK

    def count(pieces: list[Array], query: Array) -> Array:
        entries = pieces[0][:, None]
        if len(pieces) == 2:
            entries = jnp.where(of_first, entries, pieces[1][:, None])
        return (entries > query[None, :]).sum(0, dtype=jnp.int32)

    def one_row(row: tuple[list[Array], Array]) -> Array:
        entries, query = row
        rest = count([x[whole:] for x in entries], query)
        if whole == 0:
            return rest
        chunks = [x[:whole].reshape(-1, _COUNT_CHUNK) for x in entries]
        return lax.scan(lambda sum_, x: (sum_ + count(x, query), None), rest, chunks)[0]

    counts = lax.map(one_row, (values, joined))[:, :wanted]
    return jnp.split(counts, [widths[0]], axis=1)[: len(widths)]
