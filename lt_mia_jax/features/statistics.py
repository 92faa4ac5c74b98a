"""One pass over two logit tensors: everything the attacks read, nothing of size V.

Rows are visited in blocks so that temporaries stay small next to the logits, and each
block can be visited in chunks of the vocabulary. All reductions are in float32.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.layout import FeatureLayout

_LANES = 64
"""Queries are padded to this multiple: CPU code for other widths is not vectorised."""
_COUNT_CHUNK = 256
"""Entries compared per inner step on a CPU; keeps the counters in registers."""


class TokenStatistics(NamedTuple):
    """Per-step statistics of a padded batch, a pytree of `"B T"` arrays.

    Step `t` describes the prediction of token `t + 1`; the last step is never valid.
    Entries of invalid steps are zero. Log-probabilities are in nats. Fields about the
    reference are None when only one model was given. NumPy and JAX arrays both occur:
    what `token_statistics` returns lives on the device, what the store or
    `score_texts` returns on the host.
    """

    input_ids: Any
    """int32 `"B T"`: the tokens themselves (not shifted)."""
    valid: Any
    """bool `"B T"`: token t + 1 exists."""
    lp_t: Any
    """Log-probability of the true next token under the target."""
    mu_t: Any
    """Mean of log p under p, the negative entropy of the target."""
    var_t: Any
    """Variance of log p under p."""
    rank_t: Any
    """int32, 1 + number of tokens that the target prefers strictly."""
    hit_t: Any
    """bool: the true token is the target's argmax (lowest index among equals)."""
    lp_r: Any = None
    """Log-probability of the true next token under the reference."""
    mu_r: Any = None
    """Negative entropy of the reference."""
    xmu: Any = None
    """Mean of the target's log-probability under the reference."""
    xvar: Any = None
    """Variance of the target's log-probability under the reference."""
    rank_r: Any = None
    """int32, rank of the true token in the reference."""
    columns: Any = None
    """`"B T 5k+3"`: the packed LT-MIA columns, see `FeatureLayout.pack`."""


@partial(
    jax.jit,
    static_argnames=(
        "k",
        "vocab_chunk",
        "row_block",
        "log_probabilities",
        "vocab_size",
    ),
)
def token_statistics(
    target_logits: Float[Array | np.ndarray, "B T V"],
    reference_logits: Float[Array | np.ndarray, "B T _"] | None,
    input_ids: Integer[Array | np.ndarray, "B T"],
    attention_mask: Integer[Array | np.ndarray, "B T"] | Bool[Array | np.ndarray, "B T"],
    *,
    k: int = 20,
    vocab_chunk: int | None = None,
    row_block: int | None = None,
    log_probabilities: bool = False,
    vocab_size: int | None = None,
) -> TokenStatistics:
    """Statistics of the true next tokens and of both predicted distributions.

    Ranks count strictly greater logits, so tied tokens share the best rank; the lists
    of largest and smallest logits take the lowest index first among equals. What
    stands on padding, NaN included, never reaches the result. A NaN or infinity on a
    valid step does, and ids outside the vocabulary give NaN.

    Args:
      target_logits: raw logits of the model under audit; step t scores token t + 1.
      reference_logits: the same for the reference (of the same V), or None.
      input_ids: token ids, right-padded.
      attention_mask: nonzero on real tokens, an appended end token included.
      k: length of the LT-MIA lists; 0 leaves `columns` out.
      vocab_chunk: vocabulary entries visited at a time; None is all of them. Changes
        memory, not results (sums differ by rounding only).
      row_block: steps visited at a time; None chooses for the device.
      log_probabilities: normalise logits before they enter `columns`. The published
        features use raw logits.
      vocab_size: keep only the first entries of the vocabulary, to drop padding rows
        of the embedding. The published features keep them.

    Raises:
      InputError: the vocabularies differ, or k does not fit (at trace time).

    Source: the statistics of "Learning the Signature of Memorization in Autoregressive
    Language Models", arXiv 2604.03199; moments of "Min-K%++", arXiv 2404.02936;
    cross moments of "Fast-DetectGPT", arXiv 2310.05130.
    """
    logits = [jnp.asarray(target_logits)]
    if reference_logits is not None:
        logits.append(jnp.asarray(reference_logits))
    vocabulary = _check(logits, k, vocab_size)
    ids = jnp.asarray(input_ids).astype(jnp.int32)
    valid = jnp.pad(jnp.asarray(attention_mask)[:, 1:] != 0, ((0, 0), (0, 1)))
    following = jnp.where(valid, jnp.pad(ids[:, 1:], ((0, 0), (0, 1))), 0)

    batch, steps = ids.shape
    per_block = _steps_per_block(batch, steps, row_block)
    rows = batch * per_block
    chunk = min(vocab_chunk or vocabulary, vocabulary)

    def visit(start: Array) -> dict[str, Array]:
        pieces = [
            lax.dynamic_slice(x, (0, start, 0), (batch, per_block, vocabulary))
            .reshape(rows, vocabulary)
            .astype(jnp.float32)
            for x in logits
        ]
        # top_k would order -0 below 0; here they tie.
        pieces = [jnp.where(x == 0, 0.0, x) for x in pieces]
        true = lax.dynamic_slice_in_dim(following, start, per_block, axis=1)
        found = _row_statistics(
            pieces, true.reshape(rows), k, chunk, log_probabilities
        )
        return {n: x.reshape(batch, per_block, *x.shape[1:]) for n, x in found.items()}

    found = _over_steps(visit, steps, per_block)

    def clean(x: Array) -> Array:
        keep = valid if x.ndim == 2 else valid[..., None]
        return jnp.where(keep, x, jnp.zeros((), x.dtype))

    return TokenStatistics(
        input_ids=ids, valid=valid, **{name: clean(x) for name, x in found.items()}
    )


def _check(logits: list[Array], k: int, vocab_size: int | None) -> int:
    sizes = [x.shape[-1] for x in logits]
    if len(set(sizes)) > 1:
        raise InputError(
            f"the target has {sizes[0]} logits a step and the reference {sizes[1]}; "
            "both models must share one tokenizer and vocabulary"
        )
    vocabulary = min(vocab_size or sizes[0], sizes[0])
    if not 0 <= k <= vocabulary:
        raise InputError(f"k is {k}; expected 0 <= k <= {vocabulary} (vocabulary)")
    return vocabulary


def _steps_per_block(batch: int, steps: int, row_block: int | None) -> int:
    """Steps per block so that a block has about `row_block` rows (batch x steps)."""
    # An accelerator needs large blocks to be busy, a CPU small ones to stay in cache.
    row_block = row_block or (64 if jax.default_backend() == "cpu" else 1024)
    return min(steps, max(1, row_block // max(batch, 1)))


def _over_steps(visit: Any, steps: int, per_block: int) -> dict[str, Array]:
    """Concatenate `visit(start)` over the steps; the last block may overlap."""
    blocks = -(-steps // per_block)
    if blocks == 1:
        return visit(jnp.int32(0))
    last = steps - per_block
    starts = jnp.minimum(jnp.arange(blocks, dtype=jnp.int32) * per_block, last)
    stacked = lax.map(visit, starts)
    repeated = blocks * per_block - steps

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)  # B blocks steps ...
        tail = x[:, -1, repeated:]
        head = x[:, :-1].reshape(x.shape[0], -1, *x.shape[3:])
        return jnp.concatenate([head, tail], axis=1)

    return jax.tree.map(join, stacked)


def _row_statistics(
    logits: list[Array],
    true: Array,
    k: int,
    chunk: int,
    log_probabilities: bool,
) -> dict[str, Array]:
    """All statistics of a block: logits are one or two float32 arrays `"N V"`."""
    pairwise = len(logits) == 2
    vocabulary = logits[0].shape[-1]
    z_true = [_pick(x, true[:, None])[:, 0] for x in logits]
    lse, tops, bottom = _extremes(logits, max(k, 1), chunk)

    queries = [[z[:, None]] for z in z_true]
    columns = k > 0 and pairwise
    if columns:
        (top_value, top_index), (_, reference_index) = tops
        bottom_value, bottom_index = bottom
        top_other = _pick(logits[1], top_index)
        bottom_other = _pick(logits[1], bottom_index)
        queries[0].append(_pick(logits[0], reference_index))
        queries[1] += [top_other, bottom_other]
    sums, counts = _moments(logits, lse, [jnp.concatenate(q, 1) for q in queries], chunk)
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
    if columns:
        shift = (lse[0] - lse[1])[:, None] if log_probabilities else 0.0
        rank = [_normalised_rank(r, vocabulary) for r in ranks]
        truth = [
            (z_true[0] - z_true[1])[:, None] - shift,
            rank[0][:, :1],
            rank[1][:, :1],
        ]
        head = [top_value - top_other - shift, rank[1][:, 1 : k + 1], rank[0][:, 1:]]
        tail = [bottom_value - bottom_other - shift, rank[1][:, k + 1 :]]
        rows = true.shape[0]
        found["columns"] = jnp.concatenate(
            [
                *truth,
                jnp.stack(head, -1).reshape(rows, 3 * k),
                jnp.stack(tail, -1).reshape(rows, 2 * k),
            ],
            axis=1,
        )
        assert found["columns"].shape[1] == FeatureLayout(k).packed_width
    return found


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
