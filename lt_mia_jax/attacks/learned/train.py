"""Training the learned attack: best epoch on validation, resumable, sharded."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.attacks.learned import classifier, losses
from lt_mia_jax.attacks.learned.attack import BATCH, Attack, score_blocks
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.optimizer import make_optimizer
from lt_mia_jax.attacks.learned.packing import StepBatch, read_batch
from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.attacks.learned.rows import FeatureSource, Rows
from lt_mia_jax.attacks.learned.storage import save_attack
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.batches import Batch, batch_indices
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import (
    Executor,
    fetch,
    gather,
    is_primary,
    make_executor,
    per_device_key,
    psum,
    wait_for_all,
)
from lt_mia_jax.files import fingerprint
from lt_mia_jax.provenance import cores, versions
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.loop import fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.state import TrainState, init_state

log = logging.getLogger(__name__)

_WORD = 2**64


class TrainResult(NamedTuple):
    """A trained attack and how it was found."""

    attack: Attack
    best_epoch: int
    """Epochs done when the kept parameters were taken, from 1."""
    best_auc: float
    """Their validation AUC, by the recipe's `selection`."""
    history: tuple[dict[str, Any], ...]
    """One row an epoch: `step`, `validation_auc`, `pooled_auc`, `mean_auc`."""
    resumed_from: int
    """Updates done by an earlier, interrupted run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One update as a pure function; equal instances share a compiled program."""

    config: ClassifierConfig
    recipe: TrainConfig
    steps_per_epoch: int
    axis: str | None = None
    """The executor's; see `executor`."""

    @classmethod
    def of(
        cls,
        config: ClassifierConfig,
        recipe: TrainConfig,
        steps_per_epoch: int,
        axis: str | None = None,
    ) -> "TrainStep":
        """The step of a recipe; fields that do not enter an update are neutral."""
        default = TrainConfig()
        outside = "batch_size balance selection seed cache_gib cache_dtype save_seconds"
        neutral = {name: getattr(default, name) for name in outside.split()}
        return cls(
            config=config,
            recipe=dataclasses.replace(recipe, **neutral),
            steps_per_epoch=steps_per_epoch,
            axis=axis,
        )

    def __call__(
        self, constants: Params, state: TrainState, batch: StepBatch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """New state, and the loss and gradient norm before clipping."""
        key = per_device_key(key, self.axis)
        rows = psum(batch.weight.sum(), self.axis)
        batch = batch._replace(weight=batch.weight / jnp.maximum(rows, 1))
        optimizer = make_optimizer(self.recipe, self.steps_per_epoch)
        gradient = jax.value_and_grad(self._loss)

        def accumulate(so_far: Any, part: tuple[StepBatch, Array]) -> tuple[Any, None]:
            rows, index = part
            found = gradient(
                state.params, constants, rows, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, so_far, found), None

        if self.recipe.slices == 1:
            loss, updates = gradient(state.params, constants, batch, key)
        else:
            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            slices = self.recipe.slices
            # Row i goes to slice i mod n: rows stay on their device.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, slices, *x.shape[1:]).swapaxes(0, 1), batch
            )
            numbered = (parts, jnp.arange(slices))
            (loss, updates), _ = jax.lax.scan(accumulate, zero, numbered)
        loss, updates = psum((loss, updates), self.axis)
        norm = optax.tree.norm(updates)
        changes, opt_state = optimizer.update(updates, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        new = TrainState(state.step + 1, params, opt_state)
        return new, {"loss": loss, "gradient_norm": norm}

    def _loss(
        self, params: Params, constants: Params, batch: StepBatch, key: Array | None
    ) -> Array:
        """Weighted sum over texts; those of weight 0 may have any logit, even NaN."""
        recipe = self.recipe
        given = {**params, **constants}, batch.features, batch.mask
        if batch.segments is None:
            logits = classifier.apply(self.config, *given, dropout_key=key)
        else:
            logits = classifier.apply_packed(
                self.config,
                *given,
                batch.segments,
                batch.labels.shape[1],
                dropout_key=key,
            )
        labels, weight = batch.labels.ravel(), batch.weight.ravel()
        included = weight > 0
        logits = jnp.where(included, logits.ravel(), 0)
        match recipe.loss:
            case "bce":
                rows = losses.binary_cross_entropy(
                    logits, labels, smoothing=recipe.label_smoothing
                )
            case "focal":
                rows = losses.focal(logits, labels, gamma=recipe.focal_gamma)
        loss = jnp.sum(weight * rows)
        if recipe.pairwise_weight:
            pairs = (logits, labels, included)
            hinge = losses.pairwise_hinge(*(gather(x, self.axis) for x in pairs))
            # Every device finds the whole of it, and devices are added up.
            devices = 1 if self.axis is None else jax.lax.axis_size(self.axis)
            loss = loss + recipe.pairwise_weight * hinge / devices
        return loss


def train_attack(
    stores: Sequence[FeatureSource],
    config: ClassifierConfig,
    recipe: TrainConfig,
    directory: Path | str,
    *,
    executor: Executor | None = None,
) -> TrainResult:
    """Train a classifier on rows marked `train`, choose the epoch on `validation`.

    Continues an interrupted run in the same directory, with the result that an
    uninterrupted one would have had. Input columns and steps are taken from the
    stores.

    Args:
      stores: feature stores, one a combination.
      config: architecture.
      recipe: how to train.
      directory: gets the attack's files (see `save_attack`), `metrics.jsonl` and the
        checkpoints in `state/`.
      executor: the devices; None takes all.

    Raises:
      InputError: rows, labels or shapes do not serve, or training diverged.

    Source: specification of LT-MIA's attack training (arXiv 2604.03199).
    """
    directory = Path(directory)
    budget, dtype = recipe.cache_gib * 2**30, recipe.cache_dtype
    train = Rows(stores, "train", cache_bytes=budget, dtype=dtype)
    held = Rows(stores, "validation", cache_bytes=budget / 4, dtype=dtype)
    _check(train, held)
    config = dataclasses.replace(config, inputs=train.columns, length=train.length)
    executor = make_executor() if executor is None else executor
    batch_size = min(recipe.batch_size, len(train))
    batches = _batches(train, batch_size, recipe)
    steps_per_epoch = -(-len(train) // batch_size)
    where = "in memory" if train.cached else "read from disk"
    log.info(
        f"training on {len(train)} texts of {len(train.stores)} combinations "
        f"({where}), validating on {len(held)}; {recipe.epochs} epochs of "
        f"{steps_per_epoch} steps of {batch_size} texts"
    )
    key = jax.random.key(recipe.seed)
    start = classifier.init(config, jax.random.fold_in(key, 0))
    params, constants = classifier.split_constants(start)
    if config.standardise:
        moments = (jnp.asarray(x, jnp.float32) for x in train.moments(config.select))
        constants = dict(zip(("input_mean", "input_scale"), moments, strict=True))
    constants = executor.place(constants)
    step = TrainStep.of(config, recipe, steps_per_epoch, executor.axis)
    optimizer = make_optimizer(recipe, steps_per_epoch)
    start = functools.partial(init_state, optimizer=optimizer)
    directory.mkdir(parents=True, exist_ok=True)
    result = fit(
        jax.tree_util.Partial(step, constants),
        executor.init_sharded(start, params),
        total_steps=recipe.epochs * steps_per_epoch,
        batch_at=lambda index: read_batch(
            train,
            batches(index),
            executor,
            slices=recipe.slices,
            packed=config.architecture == "transformer",
        ),
        key=jax.random.fold_in(key, 1),
        executor=executor,
        label="training the attack",
        evaluate=lambda found: _evaluate(
            config, {**found, **constants}, held, recipe.selection, executor
        ),
        evaluate_every=steps_per_epoch,
        monitor="validation_auc",
        mode="max",
        checkpointer=Checkpointer(
            directory / "state", signature=_signature(config, recipe, train, held)
        ),
        save_every_seconds=recipe.save_seconds,
        metrics=MetricsWriter(directory / "metrics.jsonl"),
    )
    best = next(row for row in result.history if row["step"] == result.best_step)
    weights = fetch({**result.best, **constants})
    card = {
        "combinations": [{"name": s.name, **s.meta} for s in train.stores],
        "text_ids": sorted({*train.ids, *held.ids}),
        "rows": {"train": len(train), "validation": len(held)},
        "recipe": to_dict(recipe),
        "best_epoch": result.best_step // steps_per_epoch,
        "validation_auc": best["validation_auc"],
        "history": list(result.history),
        "versions": versions(),
        "cores": cores(),
    }
    if is_primary():
        save_attack(directory, config, weights, card)
    wait_for_all("attack saved")
    return TrainResult(
        Attack(config, weights, card),
        card["best_epoch"],
        best["validation_auc"],
        result.history,
        result.resumed_from,
    )


def _check(train: Rows, held: Rows) -> None:
    for rows in (train, held):
        members = int(rows.labels.sum())
        if not 0 < members < len(rows):
            raise InputError(
                f"the {rows.role} rows hold {members} members and "
                f"{len(rows) - members} non-members; both are needed"
            )
    if (train.length, train.columns) != (held.length, held.columns):
        raise InputError(
            f"training rows have (steps, columns) {(train.length, train.columns)}, "
            f"validation rows {(held.length, held.columns)}; extract them alike"
        )
    shared = set(train.ids) & set(held.ids)
    if shared:
        raise InputError(
            f"{len(shared)} texts are both in training and in validation (for example "
            f"{min(shared)}); split texts once over all combinations (same --seed)"
        )


def _batches(
    train: Rows, batch_size: int, recipe: TrainConfig
) -> Callable[[int], Batch]:
    plain = batch_indices(
        len(train), batch_size, seed=recipe.seed, epochs=recipe.epochs
    )
    if recipe.balance == "plain":
        return plain.__getitem__

    def draw(step: int) -> Batch:
        """Rows drawn with replacement, combinations equally likely.

        Raw Philox words, because NumPy promises only these to stay as they are.
        """
        epoch, position = divmod(step, plain.steps_per_epoch)
        first = position * batch_size
        real = min(batch_size, len(train) - first)
        philox = np.random.Philox(key=[recipe.seed % _WORD, epoch])
        words = philox.random_raw(2 * len(train)).reshape(-1, 2)[first : first + real]
        unit = (words >> np.uint64(11)) / 2.0**53  # [0, 1)
        rows = np.zeros(batch_size, np.int64)
        group = (unit[:, 0] * len(groups)).astype(np.int64)
        sizes = np.array([len(g) for g in groups])[group]
        starts = np.cumsum([0, *(len(g) for g in groups)])[group]
        rows[:real] = joined[starts + (unit[:, 1] * sizes).astype(np.int64)]
        weight = np.zeros(batch_size, np.float32)
        weight[:real] = 1
        return Batch(rows, weight)

    groups = [g for s in range(len(train.stores)) if len(g := train.members_of(s))]
    joined = np.concatenate(groups)
    return draw


def _evaluate(
    config: ClassifierConfig,
    params: Params,
    held: Rows,
    selection: str,
    executor: Executor,
) -> dict[str, float]:
    numbers = np.arange(len(held))
    blocks = (held.read(numbers[i : i + BATCH]) for i in range(0, len(held), BATCH))
    logits = score_blocks(config, params, blocks, executor)
    each = [
        auc(held.labels[rows], logits[rows])
        for store in range(len(held.stores))
        if len(rows := held.members_of(store))
    ]
    pooled, mean = auc(held.labels, logits), float(np.nanmean(each))
    return {
        "validation_auc": pooled if selection == "pooled" else mean,
        "pooled_auc": pooled,
        "mean_auc": mean,
    }


def _signature(
    config: ClassifierConfig, recipe: TrainConfig, train: Rows, held: Rows
) -> str:
    """Names what is computed; caching and the time between saves do not change it."""
    neutral = TrainConfig()
    same = dataclasses.replace(
        recipe, cache_gib=neutral.cache_gib, save_seconds=neutral.save_seconds
    )
    return fingerprint(
        {
            "classifier": to_dict(config),
            "recipe": to_dict(same),
            "train": train.fingerprint(),
            "validation": held.fingerprint(),
        }
    )
