"""A corpus into a feature store, resumable and in bounded memory.

With several processes each one makes blocks of its own, in rounds: all run the same
programs in the same order on their shares of the batches, so that models may be spread
over all devices. The store does not depend on how many processes made it.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Integer
from tqdm import tqdm

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.texts import zlib_length
from lt_mia_jax.errors import InputError, Stopped
from lt_mia_jax.executor import Executor, broadcast_from_primary, digest, hide_progress
from lt_mia_jax.features.scorer import (
    Encoded,
    ExtractConfig,
    Model,
    StatisticsExtractor,
    TextStatistics,
)
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.features.store import FeatureStore, StoreWriter, TextTable
from lt_mia_jax.files import fingerprint
from lt_mia_jax.training.preemption import StopRequest

log = logging.getLogger(__name__)


def extract(
    target_model: Model,
    target_params: Params,
    reference_model: Model,
    reference_params: Params,
    encoded: Encoded,
    *,
    ids: Sequence[str],
    labels: Sequence[int | None] | Integer[np.ndarray, " N"],
    texts: Sequence[str],
    out_dir: Path | str,
    splits: Sequence[str] | None = None,
    flags: Sequence[Sequence[str]] | None = None,
    lower: Encoded | None = None,
    config: ExtractConfig | None = None,
    meta: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
) -> FeatureStore:
    """Write statistics and features of all texts into a feature store.

    Memory does not grow with the number of texts. An interrupted run continues where
    it was and ends with the same bytes; a finished one is only opened.

    Args:
      target_model: the model under audit.
      target_params: its parameters.
      reference_model: the model it was fine-tuned from.
      reference_params: its parameters.
      encoded: token ids and masks of the texts.
      ids: id of each text.
      labels: 1 member, 0 non-member, None unknown.
      texts: the texts, for their sizes.
      out_dir: folder of the store.
      splits: train, validation or test per text; None is all test.
      flags: remarks per text.
      lower: the lower-cased texts, encoded; None leaves the lowercase score out.
      config: k, batch size and more.
      executor: the devices; None takes all. Several processes give the same
        arguments and a folder that all of them see.
      meta: JSON values that say where the features come from: name, target,
        reference, corpus, fingerprint.

    Returns:
      The finished store.

    Raises:
      InputError: columns of unequal length, different vocabularies, a token outside
        the vocabulary, logits that are not finite, or a folder with another store.
    """
    config = ExtractConfig() if config is None else config
    n, length = encoded.input_ids.shape
    if len(ids) != n or (lower is not None and len(lower.input_ids) != n):
        raise InputError(f"found {n} encoded texts, {len(ids)} ids; expected as many")
    table = TextTable(
        ids=list(ids),
        labels=[None if label is None else int(label) for label in labels],
        split=["test"] * n if splits is None else list(splits),
        n_bytes=[len(well_formed(text).encode()) for text in texts],
        zlib_bytes=[zlib_length(text) for text in texts],
        flags=[[]] * n if flags is None else flags,
    )
    settings = dataclasses.asdict(config)
    # The number of batches per block is in the store; chunks do not change results.
    for name in ("block_batches", "vocab_chunk"):
        del settings[name]
    writer = StoreWriter(
        out_dir,
        {
            **(meta or {}),
            "settings": settings,
            "inputs": fingerprint(*_arrays(encoded), *_arrays(lower))[:16],
            "models": {
                "target": digest(target_params)[:16],
                "reference": digest(reference_params)[:16],
            },
        },
        table,
        k=config.k,
        length=length,
        block_texts=config.batch_size * config.block_batches,
    )
    completed = np.isin(np.arange(writer.n_blocks), sorted(writer.completed_blocks))
    missing = np.flatnonzero(~broadcast_from_primary(completed)).tolist()
    if missing:
        scorer = StatisticsExtractor(
            target_model,
            target_params,
            reference_model,
            reference_params,
            config,
            executor,
        )
        done = n - sum(len(writer.rows(block)) for block in missing)
        if done:
            log.info("%s: continuing, %d of %d texts are done", out_dir, done, n)
        options = {"desc": "extracting", "unit": "text", "disable": hide_progress()}
        with tqdm(total=n, initial=done, **options) as bar:
            together = jax.process_count()
            for first in range(0, len(missing), together):
                blocks = missing[first : first + together]
                _write_blocks(writer, blocks, scorer, encoded, lower, ids, bar)
    writer.finish()
    # The writer has just hashed every block, written now or found.
    return FeatureStore.open(out_dir, verify=False)


def _write_blocks(
    writer: StoreWriter,
    blocks: Sequence[int],
    scorer: StatisticsExtractor,
    encoded: Encoded,
    lower: Encoded | None,
    ids: Sequence[str],
    bar: Any,
) -> None:
    """One round: process i makes the i-th block; late ones may have none."""
    rows = [writer.rows(block) for block in blocks]
    rows += [range(0)] * (jax.process_count() - len(blocks))
    mine = rows[jax.process_index()]
    names = ids[mine.start : mine.stop]

    def run(texts: Encoded, **options: Any) -> TokenStatistics:
        shares = [_rows(texts, each) for each in rows]
        plan = scorer.plan(shares)[jax.process_index()]
        share = shares[jax.process_index()]
        return scorer.statistics(share, names, plan=plan, **options)

    stopping = StopRequest()

    def on_batch(n: int) -> None:
        # The bar of the first process speaks for all, whose blocks are as large.
        bar.update(n * len(blocks))
        # One process may die at any moment. Of several SIGTERM is JAX's, which has all
        # of them stop after the same batch; they go through equally many.
        if jax.process_count() > 1 and stopping.reached():
            raise Stopped(bar.n, "text")

    found = run(encoded, half=True, on_batch=on_batch)
    lower_loss = None
    if lower is not None:
        lowered = run(lower, target_only=True, on_batch=lambda _: on_batch(0))
        lower_loss = _mean_loss(lowered)
    if jax.process_index() < len(blocks):
        writer.append_block(blocks[jax.process_index()], found, lower_loss)


def _arrays(encoded: Encoded | None) -> list[np.ndarray]:
    if encoded is None:
        return []
    ids, mask = encoded.input_ids, encoded.attention_mask
    return [np.asarray(ids, np.int32), np.asarray(mask, np.uint8)]


class _Rows(NamedTuple):
    input_ids: np.ndarray
    attention_mask: np.ndarray


def _rows(encoded: Encoded, rows: range) -> _Rows:
    piece = slice(rows.start, rows.stop)
    return _Rows(encoded.input_ids[piece], encoded.attention_mask[piece])


def _mean_loss(stats: TokenStatistics) -> Float[np.ndarray, " B"]:
    """Mean loss in nats, NaN without a valid step."""
    total = -np.where(stats.valid, stats.target_log_prob.astype(np.float64), 0).sum(
        axis=1
    )
    count = stats.valid.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


__all__ = ["ExtractConfig", "StatisticsExtractor", "TextStatistics", "extract"]
