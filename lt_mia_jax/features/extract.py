"""A corpus into a feature store, resumable and in bounded memory."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Integer
from tqdm import tqdm

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.texts import well_formed, zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.scorer import (
    Encoded,
    ExtractConfig,
    Model,
    Scored,
    TextScorer,
    join,
)
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.features.store import FeatureStore, StoreWriter, TextTable

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
    for name in ("block_batches", "vocab_chunk", "fsdp"):
        del settings[name]
    writer = StoreWriter(
        out_dir,
        {
            **(meta or {}),
            "settings": settings,
            "inputs": _digest([encoded, *([lower] if lower is not None else [])]),
            "models": {
                "target": _parameter_digest(target_params),
                "reference": _parameter_digest(reference_params),
            },
        },
        table,
        k=config.k,
        length=length,
        block_texts=config.batch_size * config.block_batches,
    )
    missing = sorted(set(range(writer.n_blocks)) - writer.completed_blocks)
    if missing:
        scorer = TextScorer(
            target_model, target_params, reference_model, reference_params, config
        )
        done = n - sum(len(writer.rows(block)) for block in missing)
        if done:
            log.info("%s: continuing, %d of %d texts are done", out_dir, done, n)
        options = {"desc": "extracting", "unit": "text", "disable": None}
        with tqdm(total=n, initial=done, **options) as bar:
            for block in missing:
                _write_block(writer, block, scorer, encoded, lower, ids, bar)
    writer.finish()
    # The writer has just hashed every block, written now or found.
    return FeatureStore.open(out_dir, verify=False)


def _write_block(
    writer: StoreWriter,
    block: int,
    scorer: TextScorer,
    encoded: Encoded,
    lower: Encoded | None,
    ids: Sequence[str],
    bar: Any,
) -> None:
    rows = writer.rows(block)
    names = ids[rows.start : rows.stop]
    parts = []
    for stats in scorer.batches(_rows(encoded, rows), names, half=True):
        parts.append(stats)
        bar.update(len(stats.valid))
    lower_loss = None
    if lower is not None:
        pieces = scorer.batches(_rows(lower, rows), names, target_only=True)
        lower_loss = np.concatenate([_mean_loss(stats) for stats in pieces])
    writer.append_block(block, join(parts), lower_loss)


class _Rows(NamedTuple):
    input_ids: np.ndarray
    attention_mask: np.ndarray


def _rows(encoded: Encoded, rows: range) -> _Rows:
    piece = slice(rows.start, rows.stop)
    return _Rows(encoded.input_ids[piece], encoded.attention_mask[piece])


def _mean_loss(stats: TokenStatistics) -> Float[np.ndarray, " B"]:
    """Mean loss in nats, NaN without a valid step."""
    total = -np.where(stats.valid, stats.lp_t.astype(np.float64), 0).sum(axis=1)
    count = stats.valid.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _digest(inputs: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for encoded in inputs:
        digest.update(np.ascontiguousarray(encoded.input_ids, np.int32).tobytes())
        digest.update(np.ascontiguousarray(encoded.attention_mask, np.uint8).tobytes())
    return digest.hexdigest()[:16]


def _parameter_digest(params: Params) -> str:
    """Hash of shapes and a few thousand values of each parameter.

    Enough to notice that a folder holds the features of other weights: fine-tuning
    changes all of them.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        stride = max(1, leaf.size // 4096)
        sample = np.asarray(leaf.reshape(-1)[::stride])
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


__all__ = ["ExtractConfig", "Scored", "TextScorer", "extract"]
