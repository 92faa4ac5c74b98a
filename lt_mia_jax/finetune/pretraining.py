"""Training tiny bases from scratch, with the loop of the fine-tuning."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.finetune.config import PretrainConfig
from lt_mia_jax.finetune.step import fit_texts, float32


class PretrainResult(NamedTuple):
    """A base model."""

    params: Params
    """Float32 parameters after the last step."""
    resumed_from: int
    """Steps that an earlier process had already done."""


def pretrain(
    model: Any,
    train: Encoded,
    config: PretrainConfig,
    *,
    directory: Path | str,
    executor: Executor | None = None,
) -> PretrainResult:
    """Train random parameters on packed or padded rows; see `finetune`."""
    executor = make_executor() if executor is None else executor
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    result = fit_texts(
        model,
        float32(executor.init_sharded(model.init, key)),
        train,
        None,
        config,
        steps=config.steps,
        directory=Path(directory),
        executor=executor,
        label="pretraining",
    )
    return PretrainResult(result.state.params, result.resumed_from)


def pack(encoded: Encoded) -> Encoded:
    """The real tokens of all texts in a row, cut into full rows of equal length.

    Texts follow one another with nothing between them but their own end-of-text
    tokens, and attention reaches across them. Only the last row may hold padding.
    """
    length = encoded.input_ids.shape[1]
    tokens = encoded.input_ids[encoded.attention_mask.astype(bool)]
    rows = -(-len(tokens) // length)
    ids = np.zeros(rows * length, np.int32)
    mask = np.zeros(rows * length, np.uint8)
    ids[: len(tokens)], mask[: len(tokens)] = tokens, 1
    mask = mask.reshape(rows, length)
    return Encoded(
        ids.reshape(rows, length), mask, np.zeros(rows, bool), mask.sum(axis=1) < 2
    )
