"""Fine-tuning the target: the run whose data the attacks try to recognize."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.config import FinetuneConfig
from lt_mia_jax.finetune.lora import Adapters
from lt_mia_jax.finetune.step import fit_texts, float32

logger = logging.getLogger(__name__)


class FinetuneResult(NamedTuple):
    """A target model."""

    params: Params
    """Float32 parameters of the best epoch, adapters merged in."""
    best_epoch: int
    """The epoch they come from, 1 being the first."""
    history: tuple[dict[str, Any], ...]
    """For each epoch `epoch`, `step` and `validation_loss` (nats a token)."""
    adapters: Adapters | None
    """The adapters of the best epoch, when there are any."""
    resumed_from: int
    """Steps that an earlier process had already done."""


def finetune(
    model: Any,
    params: Params,
    train: Encoded,
    validation: Encoded,
    config: FinetuneConfig,
    *,
    directory: Path | str,
    executor: Executor | None = None,
    save_every_seconds: float = 60.0,
) -> FinetuneResult:
    """Fine-tune and return the best epoch; the same call continues a stopped run.

    The loss is the mean over the tokens of a batch; the last, shorter batch of an
    epoch is used too. The model's own dropout is active. Master weights are float32.
    A continued run returns exactly what an uninterrupted one would have returned.

    Args:
      model: a `LanguageModel`.
      params: the base; left as it is.
      train: texts to learn from: the members.
      validation: texts that choose the epoch.
      config: the recipe.
      directory: gets `history.jsonl` (one row a step, one an epoch) and `state/`, the
        checkpoints.
      executor: the devices; None takes all, for data parallelism.
      save_every_seconds: least time between checkpoints.

    Raises:
      InputError: there is nothing to learn from, the run diverges, or `directory`
        holds another run.
    """
    executor = make_executor() if executor is None else executor
    params = float32(params)
    trained, frozen = params, None
    if config.lora is not None:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        trained, frozen = lora.init(key, params, config.lora), executor.place(params)
    epoch = -(-len(train.input_ids) // config.batch_size)
    result = fit_texts(
        model,
        trained,
        train,
        validation,
        config,
        frozen=frozen,
        lora=config.lora,
        steps=epoch * config.epochs,
        evaluate_every=epoch,
        directory=Path(directory),
        executor=executor,
        label="fine-tuning",
        save_every_seconds=save_every_seconds,
    )
    history = tuple({"epoch": row["step"] // epoch, **row} for row in result.history)
    best = result.best_step // epoch
    loss = history[best - 1]["validation_loss"]
    logger.info(
        f"fine-tuning: best of {config.epochs} epochs is {best}, validation loss "
        f"{loss:.4f} nats a token"
    )
    adapters, merged = None, result.best
    if config.lora is not None:
        adapters = result.best
        merged = lora.merge(params, adapters, config.lora.scale)
    return FinetuneResult(merged, best, history, adapters, result.resumed_from)
