"""Schedule and optimizer of a training recipe."""

import optax

from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.training import optimizer
from lt_mia_jax.training.config import Constant, Cosine, Linear, OptimizerConfig


def make_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """AdamW with decay on all parameters, after clipping the gradient's global norm."""
    adamw, total = optimizer_config(config, steps_per_epoch)
    return optimizer.make_optimizer(adamw, total, first=0)


def optimizer_config(
    config: TrainConfig, steps_per_epoch: int
) -> tuple[OptimizerConfig, int]:
    """The recipe's optimizer, whose update 0 has rate 0, and the updates in all.

    With `W` warm-up updates of `S` in all, update `s` = 0, 1, ... has the factor
    `s / W` below W, then `max(1e-6 / rate, (1 + cos(pi (s - W) / (S - W))) / 2)`, or a
    straight line to 0 with the same floor.

    Source: specification of LT-MIA's attack training (arXiv 2604.03199).
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    floor = min(1.0, 1e-6 / config.learning_rate)
    schedules = {"cosine": Cosine(floor=floor), "linear": Linear(floor=floor)}
    found = OptimizerConfig(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        schedule=schedules.get(config.schedule, Constant()),
        warmup_fraction=0.0 if config.schedule == "none" else warmup / total,
    )
    return found, total
