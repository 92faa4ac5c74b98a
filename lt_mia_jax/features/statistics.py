"""One pass over two logit tensors: everything the attacks read, nothing of size V.

Rows are visited in blocks so that temporaries stay small next to the logits, and each
block can be visited in chunks of the vocabulary. All reductions are in float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.reductions import row_statistics
from lt_mia_jax.sharding import traced_for_cpu


class TokenStatistics(NamedTuple):
    """Per-step statistics of a padded batch, a pytree of `"B T"` arrays.

    Step `t` describes the prediction of token `t + 1`; the last step is never valid.
    Entries of invalid steps are zero. Log-probabilities are in nats. Fields about the
    reference are None when only one model was given; means and variances are None when
    only the true tokens' log-probabilities and ranks are known. NumPy and JAX arrays
    both occur: what `token_statistics` returns lives on the device, what the store or a
    `StatisticsExtractor` returns on the host.

    Example:
      >>> from lt_mia_jax import TokenStatistics
      >>> TokenStatistics._fields[:3]
      ('input_ids', 'valid', 'target_log_prob')
    """

    input_ids: Any
    """int32 `"B T"`: the tokens themselves (not shifted)."""
    valid: Any
    """bool `"B T"`: token t + 1 exists."""
    target_log_prob: Any
    """Log-probability of the true next token under the target."""
    target_mean: Any
    """Mean of log p under p, the negative entropy of the target; None: not known."""
    target_var: Any
    """Variance of log p under p; None: not known."""
    target_rank: Any
    """int32, 1 + number of tokens that the target prefers strictly."""
    target_top1: Any
    """bool: the true token is the target's argmax (lowest index among equals)."""
    reference_log_prob: Any = None
    """Log-probability of the true next token under the reference."""
    reference_mean: Any = None
    """Negative entropy of the reference."""
    cross_mean: Any = None
    """Mean of the target's log-probability under the reference."""
    cross_var: Any = None
    """Variance of the target's log-probability under the reference."""
    reference_rank: Any = None
    """int32, rank of the true token in the reference."""
    columns: Any = None
    """`"B T 5k+3"`: the packed LT-MIA columns, see `FeatureLayout.pack`."""


def without_context(stats: TokenStatistics) -> TokenStatistics:
    """Statistics on the host whose valid steps stand first, in their order.

    The first token is the one before the first valid step, the others are those that
    the valid steps predict; zeros follow. Scores and features so begin where what is
    scored does, however long the context before it.
    """
    valid = stats.valid
    counts = valid.sum(axis=1, keepdims=True)
    first = np.arange(valid.shape[1])[None, :] < counts
    if (valid == first).all():
        return stats
    order = np.argsort(~valid, axis=1, kind="stable")

    def moved(x: np.ndarray) -> np.ndarray:
        index, keep = (
            y.reshape(*y.shape, *(1,) * (x.ndim - 2)) for y in (order, first)
        )
        return np.where(keep, np.take_along_axis(x, index, axis=1), 0).astype(x.dtype)

    following = np.pad(stats.input_ids[:, 1:], ((0, 0), (0, 1)))
    start = np.take_along_axis(stats.input_ids, order[:, :1], axis=1)
    ids = np.concatenate([start * (counts > 0), moved(following)[:, :-1]], axis=1)
    found = jax.tree.map(moved, stats)
    return found._replace(input_ids=ids.astype(np.int32), valid=first)


_SETTINGS = ("k", "vocab_chunk", "row_block", "log_probabilities", "vocab_size")


@partial(jax.jit, static_argnames=_SETTINGS)
def token_statistics(
    target_logits: Float[Array | np.ndarray, "B T V"],
    reference_logits: Float[Array | np.ndarray, "B T _"] | None,
    input_ids: Integer[Array | np.ndarray, "B T"],
    attention_mask: Integer[Array | np.ndarray, "B T"]
    | Bool[Array | np.ndarray, "B T"],
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
    valid step does, and ids outside the shared vocabulary give NaN.

    Args:
      target_logits: raw logits of the model under audit; step t scores token t + 1.
      reference_logits: the same for the reference, or None. If one model has more
        entries, such as rows added to its embedding, ranks, lists and cross moments
        are over the first ones, which both have; each model's log-probabilities and
        own moments are over all of its own.
      input_ids: token ids, right-padded.
      attention_mask: nonzero on real tokens, an appended end token included.
      k: length of the LT-MIA lists; 0 leaves `columns` out.
      vocab_chunk: vocabulary entries visited at a time; None is all of them. Changes
        memory, not results (sums differ by rounding only).
      row_block: steps visited at a time; None chooses for the device.
      log_probabilities: normalize logits before they enter `columns`. The published
        features use raw logits.
      vocab_size: keep only the first entries of the vocabulary, to drop padding rows
        of the embedding. The published features keep them.

    Raises:
      InputError: k does not fit (at trace time).

    Example:
      >>> import jax
      >>> from lt_mia_jax import scores, token_statistics
      >>> target, reference = jax.random.normal(jax.random.key(0), (2, 1, 4, 50))
      >>> ids = jax.numpy.array([[3, 1, 4, 0]])
      >>> mask = jax.numpy.array([[1, 1, 1, 0]])
      >>> stats = token_statistics(target, reference, ids, mask, k=5)
      >>> stats.valid.tolist(), stats.columns.shape, scores.loss(stats).shape
      ([[True, True, False, False]], (1, 4, 28), (1,))

    Source: the statistics of "Learning the Signature of Memorization in Autoregressive
    Language Models", arXiv 2604.03199; moments of "Min-K%++", arXiv 2404.02936;
    cross moments of "Fast-DetectGPT", arXiv 2310.05130.
    """
    logits = [jnp.asarray(target_logits)]
    if reference_logits is not None:
        logits.append(jnp.asarray(reference_logits))
    widths = [min(vocab_size or x.shape[-1], x.shape[-1]) for x in logits]
    vocabulary = min(widths)
    if not 0 <= k <= vocabulary:
        raise InputError(f"k is {k}; expected 0 <= k <= {vocabulary} (vocabulary)")
    ids = jnp.asarray(input_ids).astype(jnp.int32)
    valid = jnp.pad(jnp.asarray(attention_mask)[:, 1:] != 0, ((0, 0), (0, 1)))
    following = jnp.where(valid, jnp.pad(ids[:, 1:], ((0, 0), (0, 1))), 0)

    batch, steps = ids.shape
    # An accelerator needs large blocks to be busy, a CPU small ones to stay in cache.
    row_block = row_block or (32 if traced_for_cpu() else 1024)
    per_block = min(steps, max(1, row_block // max(batch, 1)))
    rows = batch * per_block
    chunk = min(vocab_chunk or vocabulary, vocabulary)

    def block(x: Array, start: Array, first: int, last: int) -> Array:
        size = (batch, per_block, last - first)
        piece = lax.dynamic_slice(x, (0, start, first), size)
        return piece.reshape(rows, last - first).astype(jnp.float32)

    def visit(start: Array) -> dict[str, Array]:
        pieces = [block(x, start, 0, vocabulary) for x in logits]
        rest = [
            block(x, start, vocabulary, width) if width > vocabulary else None
            for x, width in zip(logits, widths, strict=True)
        ]
        # top_k would order -0 below 0; here they tie.
        pieces = [jnp.where(x == 0, 0.0, x) for x in pieces]
        true = lax.dynamic_slice_in_dim(following, start, per_block, axis=1)
        found = row_statistics(
            pieces,
            true.reshape(rows),
            k,
            chunk,
            log_probabilities,
            rest if max(widths) > vocabulary else (),
        )
        return {n: x.reshape(batch, per_block, *x.shape[1:]) for n, x in found.items()}

    found = _over_steps(visit, steps, per_block)

    def clean(x: Array) -> Array:
        keep = valid if x.ndim == 2 else valid[..., None]
        return jnp.where(keep, x, jnp.zeros((), x.dtype))

    return TokenStatistics(
        input_ids=ids, valid=valid, **{name: clean(x) for name, x in found.items()}
    )


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
