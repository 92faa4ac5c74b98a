"""Step, validation loss and loop that pretraining and fine-tuning share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Float, Int, Key, Params, UInt
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.batches import Batches, batch_indices, bucket_of, length_buckets
from lt_mia_jax.data.tokenize import Encoded, scored_mask
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, digest, per_device_key, psum
from lt_mia_jax.files import fingerprint
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.config import FinetuneConfig, LoraConfig, PretrainConfig
from lt_mia_jax.finetune.loss import next_token_loss
from lt_mia_jax.models.description import describe
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.loop import FitResult, fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.optimizer import make_optimizer
from lt_mia_jax.training.state import TrainState, init_state


class TokenBatch(NamedTuple):
    """Texts of one step; NumPy arrays until an executor puts them on devices."""

    input_ids: Int[Array, "B T"]
    attention_mask: UInt[Array, "B T"]
    """1 on the tokens to learn: the real ones that are no context."""
    weight: Float[Array, "B"]


@dataclass(frozen=True)
class TokenStep:
    """One update on a batch of texts; equal values share one compiled program."""

    model: Any
    """A `LanguageModel`: hashable, with a pure `apply`."""
    optimizer: OptimizerConfig
    total_steps: int
    """Length of the run, or 0 when the learning rate does not depend on it."""
    lora: LoraConfig | None = None
    """With it, the state holds adapters and the step gets frozen parameters."""
    axis: str | None = None
    """The executor's; see `executor`."""

    def __call__(
        self,
        frozen: Params | None,
        state: TrainState,
        batch: TokenBatch,
        key: Key[Array, ""],
    ) -> tuple[TrainState, dict[str, Array]]:
        """The next state, and `loss` (nats a token) and `grad_norm` of this one."""
        key = per_device_key(key, self.axis)

        def loss(trained: Any) -> Array:
            if self.lora is not None and frozen is not None:
                logits = self.model.apply(
                    frozen,
                    batch.input_ids,
                    dropout_key=key,
                    adapters=lora.scaled(trained, self.lora.scale),
                    adapter_dropout=self.lora.dropout,
                )
            else:
                logits = self.model.apply(trained, batch.input_ids, dropout_key=key)
            mean, count = next_token_loss(
                logits, batch.input_ids, batch.attention_mask, batch.weight
            )
            # Every token of the whole batch counts the same, wherever its row is.
            share = 1.0 if self.axis is None else count / psum(count, self.axis)
            return mean * share

        found = jax.value_and_grad(loss)(state.params)
        value, gradient = psum(found, self.axis)
        optimizer = make_optimizer(self.optimizer, self.total_steps)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, opt_state), metrics


@partial(jax.jit, static_argnames=("model", "scale"))
def _validate(
    model: Any, params: Params, adapters: Any, batch: TokenBatch, scale: float
) -> tuple[Array, Array]:
    if adapters is None:
        logits = model.apply(params, batch.input_ids)
    else:
        both = {"base": params, "adapters": adapters}
        logits = lora.Adapted(model, scale).apply(both, batch.input_ids)
    return next_token_loss(logits, batch.input_ids, batch.attention_mask, batch.weight)


def validation_loss(
    model: Any,
    frozen: Params | None,
    encoded: Encoded,
    batch_size: int,
    executor: Executor,
    scale: float,
) -> Callable[[Any], dict[str, float]]:
    """A function from trained parameters to their mean loss in nats a token.

    Every token counts the same, over all texts; dropout is off. `frozen` are the
    parameters under adapters, None when all parameters are trained.

    Deviation: the reference averages the means of batches, which gives a short last
    batch and short texts more weight.
    """
    order, batch_at = batches(encoded, batch_size, executor, epochs=1, shuffle=False)

    def evaluate(trained: Any) -> dict[str, float]:
        params, adapters = (trained, None) if frozen is None else (frozen, trained)
        results = []
        for step in range(len(order)):
            batch = executor.place_rows(batch_at(step))
            results.append(_validate(model, params, adapters, batch, scale))
        means, counts = np.array(jax.device_get(results), np.float64).T
        return {"validation_loss": float((means * counts).sum() / counts.sum())}

    return evaluate


def fit_texts(
    model: Any,
    trained: Any,
    train: Encoded,
    validation: Encoded | None,
    config: FinetuneConfig | PretrainConfig,
    *,
    steps: int,
    directory: Path,
    executor: Executor,
    label: str,
    save_every_seconds: float = 60.0,
    frozen: Params | None = None,
    lora: LoraConfig | None = None,
    evaluate_every: int | None = None,
) -> FitResult:
    """Run a recipe with checkpoints in `state/` and numbers in `history.jsonl`.

    `trained` is the start of what is trained: parameters, or adapters beside `frozen`
    ones. The texts are passed over as often as `steps` updates need. Without
    `evaluate_every`, the validation loss is measured at the end only.
    """
    _check_targets(train, "training texts")
    if validation is not None:
        _check_targets(validation, "validation texts")
    base = trained if frozen is None else frozen
    computed = signature(config, model, base, train=train, validation=validation)
    size, optimizer = config.batch_size, config.optimizer
    epochs = -(-steps // -(-len(train.input_ids) // size))
    _, batch_at = batches(train, size, executor, seed=config.seed, epochs=epochs)
    evaluate = None
    if validation is not None:
        scale = 0.0 if lora is None else lora.scale
        evaluate = validation_loss(model, frozen, validation, size, executor, scale)
    length = steps if optimizer.needs_total_steps else 0
    step = TokenStep(model, optimizer, length, lora, executor.axis)
    start = partial(init_state, optimizer=make_optimizer(optimizer, length))
    return fit(
        jax.tree_util.Partial(step, frozen),
        executor.init_sharded(start, trained),
        total_steps=steps,
        batch_at=batch_at,
        key=jax.random.fold_in(jax.random.key(config.seed), 0),
        executor=executor,
        label=label,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        checkpointer=Checkpointer(directory / "state", signature=computed),
        save_every_seconds=save_every_seconds,
        metrics=MetricsWriter(directory / "history.jsonl"),
    )


def batches(
    encoded: Encoded,
    batch_size: int,
    executor: Executor,
    *,
    epochs: int,
    seed: int = 0,
    shuffle: bool = True,
) -> tuple[Batches, Callable[[int], TokenBatch]]:
    """The order of batches, and this process's host arrays of each.

    Rows of weight 0 fill up the last batch of an epoch, and every batch when the
    number of devices does not divide its size. Columns that are padding in the whole
    batch are cut off, up to the next of a few lengths (`length_buckets`).
    """
    order = batch_indices(
        len(encoded.input_ids), batch_size, seed=seed, epochs=epochs, shuffle=shuffle
    )
    extra = executor.round_up(batch_size) - batch_size
    lengths = encoded.attention_mask.sum(axis=1)
    targets = scored_mask(encoded).astype(np.uint8)
    buckets = length_buckets(encoded.input_ids.shape[1])

    def batch_at(step: int) -> TokenBatch:
        rows, weight = order[step]
        rows, weight = np.pad(rows, (0, extra)), np.pad(weight, (0, extra))
        width = bucket_of(int(lengths[rows].max()), buckets)
        rows, weight = executor.share(rows), executor.share(weight)
        arrays = (encoded.input_ids, targets)
        host: Any = (*(x[rows, :width] for x in arrays), weight)
        return TokenBatch(*host)

    return order, batch_at


def float32(params: Params) -> Params:
    """Parameters as float32, whatever the checkpoint holds."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _check_targets(encoded: Encoded, what: str) -> None:
    """Refuse data without a single token to predict; `what` names them."""
    if not scored_mask(encoded)[:, 1:].any():
        what_is = "a response" if encoded.scored is not None else "two tokens or more"
        raise InputError(
            f"{what}: {len(encoded.input_ids)} texts, none with {what_is}; expected "
            "text to learn from"
        )


def signature(config: Any, model: Any, params: Any, **data: Encoded | None) -> str:
    """A hash of everything that decides the result of a run.

    Of the starting parameters it holds a sample. Devices and executor are left out: a
    run may go on with others.
    """
    described = {"config": to_dict(config), "model": describe(model)}
    parts: list[Any] = [described, digest(params)]
    for name, encoded in data.items():
        parts.append(name)
        if encoded is not None:
            parts += [encoded.input_ids, encoded.attention_mask]
            parts += [] if encoded.scored is None else [encoded.scored]
    return fingerprint(*parts)
