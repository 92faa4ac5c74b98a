"""Fine-tuning the target: the run whose data the attacks try to recognize."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.lora import Adapters, LoraConfig
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
from lt_mia_jax.training.optimizer import OptimizerConfig, make_optimizer
from lt_mia_jax.training.state import init_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The recipe of the paper: AdamW at a constant rate, no warm-up, no clipping.

    Source: Learning the Signature of Memorization in Autoregressive Language Models,
    arXiv 2604.03199 (settings of the reference implementation).
    """

    learning_rate: float = 5e-5
    """Constant rate."""
    epochs: int = 3
    """Passes over the texts; the one with the lowest validation loss is kept."""
    batch_size: int = 16
    """Texts in one step, over all devices."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on all parameters."""
    lora: LoraConfig | None = None
    """Train adapters instead of all parameters."""
    seed: int = 0
    """Seed of the order of texts, of dropout and of the adapters."""

    def __post_init__(self):
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name in ("epochs", "batch_size")
            if getattr(self, name) < 1
        ]
        if wrong:
            raise InputError(f"finetune: {', '.join(wrong)}, expected at least 1")
        self.optimizer  # noqa: B018  checks the rates

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer that this recipe means."""
        return OptimizerConfig(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )


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
    check_targets(train, "training texts")
    check_targets(validation, "validation texts")
    executor = make_executor() if executor is None else executor
    directory = Path(directory)
    params = float32(params)
    name = signature(config, model, params, train=train, validation=validation)
    key = jax.random.key(config.seed)

    frozen, trained, scale = None, params, 0.0
    if config.lora is not None:
        trained = lora.init(jax.random.fold_in(key, 1), params, config.lora)
        frozen, scale = executor.place(params), config.lora.scale
    order, batch_at = batches(
        train,
        config.batch_size,
        seed=config.seed,
        epochs=config.epochs,
        executor=executor,
    )
    step = TokenStep(model, config.optimizer, 0, config.lora, executor.axis)
    start = partial(init_state, optimizer=make_optimizer(config.optimizer, 0))
    result = fit(
        jax.tree_util.Partial(step, frozen),
        executor.init_sharded(start, trained),
        total_steps=len(order),
        batch_at=batch_at,
        key=jax.random.fold_in(key, 0),
        executor=executor,
        label="fine-tuning",
        evaluate=validation_loss(
            model,
            frozen,
            validation,
            batch_size=config.batch_size,
            executor=executor,
            scale=scale,
        ),
        evaluate_every=order.steps_per_epoch,
        checkpointer=Checkpointer(directory / "state", signature=name),
        save_every_seconds=save_every_seconds,
        metrics=MetricsWriter(directory / "history.jsonl"),
    )
    history = tuple(
        {"epoch": row["step"] // order.steps_per_epoch, **row} for row in result.history
    )
    best_epoch = result.best_step // order.steps_per_epoch
    logger.info(
        "fine-tuning: best of %d epochs is %d, validation loss %.4f nats a token",
        config.epochs,
        best_epoch,
        history[best_epoch - 1]["validation_loss"],
    )
    adapters = result.best if config.lora is not None else None
    return FinetuneResult(
        params=result.best
        if config.lora is None
        else lora.merge(params, result.best, scale),
        best_epoch=best_epoch,
        history=history,
        adapters=adapters,
        resumed_from=result.resumed_from,
    )
