"""Training tiny bases from scratch, with the loop of the fine-tuning."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.finetune.step import (
    TokenStep,
    batches,
    check_targets,
    float32,
    signature,
    validation_loss,
)
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.loop import fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.optimizer import Cosine, OptimizerConfig, make_optimizer
from lt_mia_jax.training.state import init_state

ADAMW = OptimizerConfig(
    learning_rate=1e-3,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
    schedule=Cosine(floor=0.1),
    warmup_fraction=0.05,
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How to train a small model from random parameters."""

    steps: int = 1000
    """Updates; the data are repeated as often as needed."""
    batch_size: int = 32
    """Rows in one step, over all devices."""
    optimizer: OptimizerConfig = ADAMW
    """AdamW with a cosine schedule and clipping."""
    seed: int = 0
    """Seed of the order of rows, of dropout and of parameters made here."""

    def __post_init__(self):
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name in ("steps", "batch_size")
            if getattr(self, name) < 1
        ]
        if wrong:
            raise InputError(f"pretrain: {', '.join(wrong)}, expected at least 1")


class PretrainResult(NamedTuple):
    """A base model."""

    params: Params
    """Float32 parameters after the last step."""
    validation_loss: float | None
    """Their loss in nats a token, when validation texts were given."""
    resumed_from: int
    """Steps that an earlier process had already done."""


def pretrain(
    model: Any,
    params: Params | None,
    train: Encoded,
    config: PretrainConfig,
    *,
    directory: Path | str,
    validation: Encoded | None = None,
    executor: Executor | None = None,
    save_every_seconds: float = 60.0,
) -> PretrainResult:
    """Train on rows of tokens; the same call continues a stopped run, exactly.

    Args:
      model: a `LanguageModel`.
      params: the start, left as it is; None makes them with `model.init`.
      train: packed (see `pack`) or padded rows.
      config: the recipe.
      directory: gets `history.jsonl` and `state/`, the checkpoints.
      validation: texts for a loss at the end.
      executor: the devices; None takes all, for data parallelism.
      save_every_seconds: least time between checkpoints.

    Raises:
      InputError: there is nothing to learn from, the run diverges, or `directory`
        holds another run.
    """
    check_targets(train, "pretraining texts")
    if validation is not None:
        check_targets(validation, "validation texts")
    executor = make_executor() if executor is None else executor
    directory = Path(directory)
    key = jax.random.key(config.seed)
    if params is None:
        start = executor.init_sharded(model.init, jax.random.fold_in(key, 1))
    else:
        start = params
    start = float32(start)
    name = signature(config, model, start, train=train, validation=validation)
    order, batch_at = batches(
        train,
        config.batch_size,
        seed=config.seed,
        epochs=-(-config.steps // -(-len(train.input_ids) // config.batch_size)),
        executor=executor,
    )
    assert len(order) >= config.steps
    length = config.steps if config.optimizer.needs_total_steps else 0
    evaluate = None
    if validation is not None:
        evaluate = validation_loss(
            model, None, validation, batch_size=config.batch_size, executor=executor
        )
    step = TokenStep(model, config.optimizer, length, axis=executor.axis)
    optimizer = make_optimizer(config.optimizer, length)
    result = fit(
        jax.tree_util.Partial(step, None),
        executor.init_sharded(partial(init_state, optimizer=optimizer), start),
        total_steps=config.steps,
        batch_at=batch_at,
        key=jax.random.fold_in(key, 0),
        executor=executor,
        label="pretraining",
        evaluate=evaluate,
        checkpointer=Checkpointer(directory / "state", signature=name),
        save_every_seconds=save_every_seconds,
        metrics=MetricsWriter(directory / "history.jsonl"),
    )
    return PretrainResult(
        params=result.state.params,
        validation_loss=result.history[-1]["validation_loss"]
        if result.history
        else None,
        resumed_from=result.resumed_from,
    )


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
