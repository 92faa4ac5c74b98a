"""`unlearn`: run a method on a model; resumable, on any devices."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.data.batches import batch_indices, bucket_of, length_buckets
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, fetch, make_executor
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.lora import Adapters, LoraConfig
from lt_mia_jax.finetune.step import float32, signature
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.loop import fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.optimizer import Linear, OptimizerConfig
from lt_mia_jax.training.optimizer import Schedule as Rate
from lt_mia_jax.training.state import init_state
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.batch import TextBatch
from lt_mia_jax.unlearning.methods import Method, Schedule
from lt_mia_jax.unlearning.prepare import Setting, prepare
from lt_mia_jax.unlearning.step import Frozen, PairBatch, Trainee, UnlearnStep

logger = logging.getLogger(__name__)

_LINEAR = Linear()
_RETAIN, _ALTERNATIVE, _RANDOM = range(3)
"""Streams of random numbers, all from the config's seed."""


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
    """Everything but the method; the defaults are those of TOFU.

    Source: open-unlearning's TOFU recipe (arXiv 2506.12618).
    """

    learning_rate: float = 1e-5
    """Highest rate of AdamW."""
    epochs: int = 10
    """Passes over the forget texts (over the retain texts when only these are used)."""
    batch_size: int = 32
    """Forget texts in an update, and as many retain texts, drawn with replacement."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_epochs: float = 1.0
    """Epochs over which the rate rises."""
    schedule: Rate = _LINEAR
    """Rate after the warm-up."""
    clip_norm: float | None = None
    """Global norm to which the combined gradient is clipped."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    prepare_texts: int = 512
    """Retain texts that a method may look at before it starts."""
    seed: int = 0
    """Seed of the order of texts and of all draws."""

    def __post_init__(self):
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name in ("epochs", "batch_size", "prepare_texts")
            if getattr(self, name) < 1
        ]
        if wrong:
            raise InputError(f"unlearn: {', '.join(wrong)}, expected at least 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"unlearn: warmup_epochs = {self.warmup_epochs}, expected 0 to "
                f"{self.epochs} (epochs)"
            )
        self.optimizer  # noqa: B018  checks the rates

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer that this recipe means."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
            warmup_fraction=self.warmup_epochs / self.epochs,
        )


class ForgetTexts(NamedTuple):
    """What is to be forgotten."""

    answers: EncodedAnswers
    """The texts."""
    refusals: Sequence[EncodedAnswers] = ()
    """The same prompts with answers that give nothing away; one is drawn each time."""
    inverted: Sequence[EncodedAnswers] = ()
    """The same prompts with false answers; one is drawn each time."""


class UnlearnResult(NamedTuple):
    """A model after unlearning."""

    params: Params
    """Float32 parameters, adapters merged in."""
    adapters: Adapters | None
    """The adapters, when there are any."""
    method: Method
    """With everything filled in that depends on the model."""
    steps: int
    """Updates in the whole run."""
    resumed_from: int
    """Updates that an earlier process had already done."""


def unlearn(
    model: Any,
    params: Params,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    method: Method,
    config: UnlearnConfig,
    *,
    directory: Path | str,
    executor: Executor | None = None,
    save_every_seconds: float = 60.0,
) -> UnlearnResult:
    """Make a model forget some texts; the same call continues a stopped run.

    Every update reads a batch of forget texts (in passes over all) and as many retain
    texts (drawn). A continued run returns exactly what an uninterrupted one would.

    Args:
      model: a `LanguageModel`.
      params: the model before; left as it is.
      forget: the texts to forget, with what the method needs beside them.
      retain: texts to keep; None for methods that need none.
      method: a value of `methods`.
      config: the recipe.
      directory: gets `history.jsonl` (one row a step) and `state/`, the checkpoints.
      executor: the devices; None takes all, for data parallelism.
      save_every_seconds: least time between checkpoints.

    Raises:
      InputError: texts that the method needs are missing, the run diverges (the last
        good checkpoint is kept), or `directory` holds another run.
    """
    executor = make_executor() if executor is None else executor
    directory = Path(directory)
    method = method.fitted(model.config)
    _check(method, forget, retain, config)
    name = _signature(model, params, forget, retain, method, config)
    params = float32(params)
    key = jax.random.key(config.seed)
    trainee = Trainee(model=model, lora=config.lora)
    base, trained = None, params
    if config.lora is not None:
        trained = lora.init(jax.random.fold_in(key, 2), params, config.lora)
        base = executor.place(params)
    trained = executor.copy(trained)
    apply_fn = trainee.apply_fn(base)

    sets = _Sets(forget, retain, method, config, executor, model.config.vocab_size)
    sets.remember_reference(apply_fn, trained)
    prepared = prepare(
        method,
        Setting(
            model=model.config,
            apply_fn=apply_fn,
            forward_fn=trainee.apply_fn(base, forward=True),
            trained=trained,
            forget=sets.all_forget,
            retain=sets.some_retain,
            forget_texts=len(forget.answers.input_ids),
            key=jax.random.fold_in(key, 1),
        ),
    )
    sets.row_weight = prepared.row_weight
    step = UnlearnStep(
        trainee=trainee,
        method=method,
        optimizer=config.optimizer,
        schedule=sets.schedule,
        axis=executor.axis,
    )
    start = partial(init_state, optimizer=step.transform(prepared.arrays))
    frozen = Frozen(base, {n: executor.place(x) for n, x in prepared.data.items()})
    result = fit(
        jax.tree_util.Partial(step, frozen),
        executor.born(start, trained),
        total_steps=sets.schedule.total,
        batch_at=sets.batch_at,
        key=jax.random.fold_in(key, 0),
        executor=executor,
        label="unlearning",
        checkpointer=Checkpointer(directory / "state", signature=name),
        save_every_seconds=save_every_seconds,
        metrics=MetricsWriter(directory / "history.jsonl"),
    )
    found = result.state.params
    adapted = config.lora is not None
    return UnlearnResult(
        lora.merge(params, found, config.lora.scale) if config.lora else found,
        found if adapted else None,
        method,
        sets.schedule.total,
        result.resumed_from,
    )


class _Sets:
    """Host rows of forget and retain texts, and the batches made of them."""

    def __init__(
        self,
        forget: ForgetTexts,
        retain: EncodedAnswers | None,
        method: Method,
        config: UnlearnConfig,
        executor: Executor,
        vocabulary: int,
    ) -> None:
        self.method, self.config, self.executor = method, config, executor
        self.forget = forget.answers
        self.retain = retain if method.retain() is not None else None
        match method.alternative:
            case "refusal":
                self.alternatives = tuple(forget.refusals)
            case "inverted":
                self.alternatives = tuple(forget.inverted)
            case "random":
                self.alternatives = (
                    _random_labels(self.forget, vocabulary, config.seed),
                )
            case None:
                self.alternatives = ()
        main = self.retain if method.forget() is None else self.forget
        assert main is not None
        self.order = batch_indices(
            len(main.input_ids),
            config.batch_size,
            seed=config.seed,
            epochs=config.epochs,
        )
        self.schedule = Schedule(len(self.order), self.order.steps_per_epoch)
        self.reference: Float[np.ndarray, "N T"] | None = None
        self.alternative_reference: list[Float[np.ndarray, "N T"]] = []
        self.row_weight: Float[np.ndarray, " N"] | None = None

    def remember_reference(self, apply_fn: Any, trained: Any) -> None:
        """Compute -log p of all forget texts, if the method wants it."""
        if not self.method.cached_reference:
            return
        self.reference = self._nll(self.forget, apply_fn, trained)
        self.alternative_reference = [
            self._nll(texts, apply_fn, trained) for texts in self.alternatives
        ]

    def _nll(
        self, texts: EncodedAnswers, apply_fn: Any, trained: Any
    ) -> Float[np.ndarray, "N T"]:
        found = np.zeros(texts.input_ids.shape, np.float32)
        for rows, batch in self._in_order(texts, len(texts.input_ids)):
            nll = fetch(_reference_nll(apply_fn, trained, batch))
            found[rows, : nll.shape[1]] = nll[: len(rows)]
        return found

    def all_forget(self) -> Iterator[TextBatch]:
        """Forget texts in order, on the devices."""
        for _, batch in self._in_order(self.forget, len(self.forget.input_ids)):
            yield batch

    def some_retain(self) -> Iterator[TextBatch]:
        """The first retain texts, on the devices."""
        if self.retain is None:
            return
        count = min(len(self.retain.input_ids), self.config.prepare_texts)
        for _, batch in self._in_order(self.retain, count):
            yield batch

    def _in_order(
        self, texts: EncodedAnswers, count: int
    ) -> Iterator[tuple[Int[np.ndarray, " B"], TextBatch]]:
        size = self.executor.round_up(self.config.batch_size)
        for start in range(0, count, size):
            rows = np.arange(start, min(start + size, count))
            batch = self._texts(
                texts, *self._filled(rows, np.ones(len(rows), np.float32), size)
            )
            yield rows, self.executor.place_rows(batch)

    def batch_at(self, step: int) -> PairBatch:
        """This process's host rows of one update."""
        rows, weight = self.order[step]
        size = self.executor.round_up(self.config.batch_size)
        if self.method.forget() is None:
            assert self.retain is not None
            return PairBatch(
                None, self._texts(self.retain, *self._filled(rows, weight, size))
            )
        if self.row_weight is not None:
            weight = weight * self.row_weight[rows]
        rows, weight = self._filled(rows, weight, size)
        batch = self._texts(self.forget, rows, weight, self.reference)
        if self.alternatives:
            which = self._draw(_ALTERNATIVE, step, len(self.alternatives), len(rows))
            batch = batch._replace(alternative=self._alternative(rows, weight, which))
        retain = None
        if self.retain is not None:
            drawn = self._draw(
                _RETAIN, step, len(self.retain.input_ids), self.config.batch_size
            )
            ones = np.ones(len(drawn), np.float32)
            retain = self._texts(self.retain, *self._filled(drawn, ones, size))
        return PairBatch(batch, retain)

    def _draw(self, stream: int, step: int, options: int, count: int) -> np.ndarray:
        """Numbers below `options`, the same on every machine and NumPy."""
        philox = np.random.Philox(
            key=[self.config.seed % 2**64, step], counter=[stream, 0, 0, 0]
        )
        return (philox.random_raw(count) % np.uint64(options)).astype(np.int64)

    def _filled(
        self, rows: np.ndarray, weight: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """With rows of weight 0 up to `size`."""
        extra = size - len(rows)
        if extra:
            rows = np.concatenate([rows, np.zeros(extra, rows.dtype)])
            weight = np.concatenate([weight, np.zeros(extra, weight.dtype)])
        return rows, weight.astype(np.float32)

    def _texts(
        self,
        texts: EncodedAnswers,
        rows: np.ndarray,
        weight: np.ndarray,
        reference: Float[np.ndarray, "N T"] | None = None,
    ) -> TextBatch:
        """Rows as a batch, cut to one of a few widths; a process takes its share."""
        lengths = texts.attention_mask[rows].sum(axis=1, dtype=np.int64)
        width = bucket_of(int(lengths.max()), length_buckets(texts.input_ids.shape[1]))
        rows, weight = self.executor.share(rows), self.executor.share(weight)
        host: Any = (
            texts.input_ids[rows, :width],
            texts.attention_mask[rows, :width],
            texts.label_mask[rows, :width],
            weight,
            None if reference is None else reference[rows, :width],
        )
        return TextBatch(*host)

    def _alternative(
        self, rows: np.ndarray, weight: np.ndarray, which: np.ndarray
    ) -> TextBatch:
        """Row `i` from alternative `which[i]`."""
        stacked = EncodedAnswers(
            *(
                np.stack(
                    [
                        np.asarray(field[k][row])
                        for k, row in zip(which, rows, strict=True)
                    ]
                )
                for field in zip(*self.alternatives, strict=True)
            )
        )
        reference = None
        if self.alternative_reference:
            reference = np.stack(
                [
                    self.alternative_reference[k][row]
                    for k, row in zip(which, rows, strict=True)
                ]
            )
        return self._texts(stacked, np.arange(len(rows)), weight, reference)


@jax.jit
def _reference_nll(apply_fn: Any, trained: Any, batch: TextBatch) -> Array:
    return objectives.cached_reference_nll(trained, batch, apply_fn=apply_fn)


def _random_labels(texts: EncodedAnswers, vocabulary: int, seed: int) -> EncodedAnswers:
    """The same prompts with random tokens for targets, drawn once."""
    philox = np.random.Philox(key=[seed % 2**64, 0], counter=[_RANDOM, 0, 0, 0])
    words = philox.random_raw(texts.input_ids.size) % np.uint64(vocabulary)
    drawn = words.reshape(texts.input_ids.shape).astype(np.int32)
    return texts._replace(
        input_ids=np.where(texts.label_mask != 0, drawn, texts.input_ids)
    )


def _check(
    method: Method,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    config: UnlearnConfig,
) -> None:
    name = type(method).__name__
    if method.retain() is not None and (retain is None or not len(retain.input_ids)):
        raise InputError(
            f"{name} needs texts to keep; give --retain"
            + ("" if method.forget() is None else ", or choose a method without")
        )
    if method.forget() is not None and not len(forget.answers.input_ids):
        raise InputError(f"{name}: there is no text to forget")
    missing = {"refusal": forget.refusals, "inverted": forget.inverted}
    if method.alternative in missing and not missing[method.alternative]:
        raise InputError(
            f"{name} needs other answers to the texts to forget; expected the field "
            f"{method.alternative!r} in every row"
        )
    if method.weights_only and config.lora is not None:
        raise InputError(f"{name} chooses among the model's weights; leave --lora out")


def _signature(
    model: Any,
    params: Params,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    method: Method,
    config: UnlearnConfig,
) -> str:
    """Names everything that decides the result."""
    described = {"method": type(method).__name__, **dataclasses.asdict(method)}
    found = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    found.update(signature(config, model, params).encode())
    for texts in (forget.answers, *forget.refusals, *forget.inverted, retain):
        for field in () if texts is None else texts[:3]:
            found.update(f"{field.shape}".encode())
            found.update(np.ascontiguousarray(field).tobytes())
    return found.hexdigest()
