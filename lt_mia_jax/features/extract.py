"""A corpus into a feature store, resumable and in bounded memory.

With several processes each one makes blocks of its own, in rounds: all run the same
programs in the same order on their shares of the batches, so that models may be spread
over all devices. The store does not depend on how many processes made it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Integer

from lt_mia_jax.arrays import Params
from lt_mia_jax.checkpoints import Pretrained
from lt_mia_jax.checkpoints.tokenizer import fit_vocabulary
from lt_mia_jax.data.chat.rendering import check_responses
from lt_mia_jax.data.chat.rows import Chat
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.splits import attack_split
from lt_mia_jax.data.texts import Text, contents, zlib_length
from lt_mia_jax.data.texts import fingerprint as text_fingerprint
from lt_mia_jax.data.tokenize import (
    Bos,
    Encoded,
    Score,
    describe_beginning,
    encode,
    flag_texts,
    lower_case,
    scored_mask,
    scored_texts,
)
from lt_mia_jax.errors import InputError, Stopped
from lt_mia_jax.executor import Executor, broadcast_from_primary, digest
from lt_mia_jax.features.program import ExtractConfig
from lt_mia_jax.features.scorer import Model, StatisticsExtractor
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.features.writer import SIZES, StoreWriter, TextTable
from lt_mia_jax.files import fingerprint
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.length import check_length
from lt_mia_jax.training.preemption import StopRequest
from lt_mia_jax.training.progress import Progress

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
    it was and ends with the same bytes; a finished one is only opened. Several
    processes give the same arguments and a folder that all of them see.

    `TextTable` describes ids, labels, splits (None: all test) and flags. `texts` are
    the parts that `encoded` holds (`scored_texts`); only their sizes are kept. Without
    `lower`, the same in lower case, that score is left out. `meta` are JSON values that
    say where the features come from: name, target, reference, corpus, fingerprint.

    Raises:
      InputError: columns of unequal length, a token outside the vocabulary that both
        models have, logits that are not finite, or a folder with another store.
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
    # The number of batches per block is in the store; chunks do not change results.
    outside = ("block_batches", "vocab_chunk")
    settings = {name: x for name, x in vars(config).items() if name not in outside}
    writer = StoreWriter(
        out_dir,
        {
            **(meta or {}),
            SIZES: "scored",
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
        with Progress("extracting", n, "text", done=done) as bar:
            together = jax.process_count()
            for first in range(0, len(missing), together):
                blocks = missing[first : first + together]
                _write_blocks(writer, blocks, scorer, encoded, lower, ids, bar)
    writer.finish()
    # The writer has just hashed every block, written now or found.
    return FeatureStore.open(out_dir, verify=False)


def extract_texts(
    target: Pretrained,
    reference: Pretrained,
    texts: Sequence[str | Chat],
    *,
    ids: Sequence[str],
    labels: Integer[np.ndarray, " N"],
    length: int,
    side: Literal["right", "left"],
    bos: Bos = "auto",
    score: Score = "response",
    seed: int,
    out_dir: Path | str,
    lowercase: bool = True,
    config: ExtractConfig | None = None,
    meta: Mapping[str, Any],
    executor: Executor | None = None,
) -> FeatureStore:
    """`extract` from texts that still have to be tokenized and split.

    Texts are cut to `length` tokens at the end `side`; see `encode`, also for `bos` and
    `score`. `seed` decides their roles in training an attack. Without `lowercase` one
    of the published scores, and a third forward pass, is left out.
    """
    check_length(length, target=target.config, reference=reference.config)
    # A chat template often comes with the target alone.
    tokenizer = target.tokenizer
    log.info("%s", describe_beginning(tokenizer, bos, *texts[:1]))
    cut: Any = {"side": side, "bos": bos}
    encoded = encode(texts, tokenizer, length=length, score=score, **cut)
    lower = lower_case(texts, encoded, tokenizer, **cut) if lowercase else None
    scored = scored_texts(texts, encoded, tokenizer)
    flags = flag_texts(encoded)
    check_responses(flags, length)
    plain = [text if isinstance(text, str) else text.text for text in texts]
    sizes = {
        name: model.config.vocab_size
        for name, model in (("target", target), ("reference", reference))
    }
    encoded = fit_vocabulary(encoded, tokenizer, ids, sizes)
    if lower is not None:
        own = {"target": sizes["target"]}
        lower = fit_vocabulary(lower, tokenizer, ids, own)
    return extract(
        LanguageModel(target.config),
        target.params,
        LanguageModel(reference.config),
        reference.params,
        encoded,
        ids=ids,
        labels=labels,
        splits=[attack_split(seed, text_id) for text_id in ids],
        texts=scored,
        flags=flags,
        lower=lower,
        out_dir=out_dir,
        config=config,
        meta={
            **meta,
            **_context(texts, encoded, tokenizer, score),
            # Earlier versions refused models of which they differ.
            **({"vocabularies": sizes} if len(set(sizes.values())) > 1 else {}),
            "fingerprint": text_fingerprint(ids),
            "contents": contents(map(Text, ids, plain, map(int, labels))),
        },
        executor=executor,
    )


def _context(
    texts: Sequence[str | Chat], encoded: Encoded, tokenizer: Any, score: Score
) -> dict[str, Any]:
    """What the description of a store says of context; nothing where there is none.

    Earlier versions had none.
    """
    found: dict[str, Any] = {}
    if any(not isinstance(text, str) for text in texts):
        found["score"] = score
    outside = (encoded.attention_mask != 0) & ~scored_mask(encoded)
    if outside[:, 0].any():
        found["context"] = True  # the first token of a text is no part of it
        token = tokenizer.bos_token_id
        if token is not None and (encoded.input_ids[outside[:, 0], 0] == token).all():
            found["bos"] = tokenizer.bos_token
    return found


def _write_blocks(
    writer: StoreWriter,
    blocks: Sequence[int],
    scorer: StatisticsExtractor,
    encoded: Encoded,
    lower: Encoded | None,
    ids: Sequence[str],
    bar: Progress,
) -> None:
    """One round: process i makes the i-th block; late ones may have none."""
    rows = [writer.rows(block) for block in blocks]
    rows += [range(0)] * (jax.process_count() - len(blocks))
    mine = rows[jax.process_index()]
    names = ids[mine.start : mine.stop]

    def run(texts: Encoded, **options: Any) -> TokenStatistics:
        shares = [texts.take(np.arange(each.start, each.stop)) for each in rows]
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
            raise Stopped(bar.done, "text")

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
    known = [] if encoded.scored is None else [encoded.scored]
    return [np.asarray(ids, np.int32), np.asarray(mask, np.uint8), *known]


def _mean_loss(stats: TokenStatistics) -> Float[np.ndarray, " B"]:
    """Mean loss in nats, NaN without a valid step."""
    log_prob = stats.target_log_prob.astype(np.float64)
    total, count = -(log_prob * stats.valid).sum(axis=1), stats.valid.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
