"""The batches of a run: epochs over the forget texts, random draws of retain texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.data.batches import batch_indices, bucket_of, length_buckets
from lt_mia_jax.executor import Executor, fetch
from lt_mia_jax.unlearning.methods.method import Method, Schedule
from lt_mia_jax.unlearning.methods.setting import reference_nll
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
from lt_mia_jax.unlearning.step import PairBatch

_RETAIN, _ALTERNATIVE, _RANDOM = range(3)
"""Streams of random numbers, all from the config's seed."""


class UnlearningBatches:
    """Forget and retain texts in host memory, and the batches made of them."""

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
        self.retain = retain if method.needs_retain else None
        if method.alternative == "random":
            labels = _random_labels(self.forget, vocabulary, config.seed)
            self.alternatives: Sequence[EncodedAnswers] = (labels,)
        else:
            self.alternatives = forget.alternatives(method.alternative)
        main = self.forget if method.needs_forget else self.retain
        assert main is not None
        self.order = batch_indices(
            len(main.input_ids),
            config.batch_size,
            seed=config.seed,
            epochs=config.epochs,
        )
        self.size = executor.round_up(config.batch_size)
        self.schedule = Schedule(len(self.order), self.order.steps_per_epoch)
        self.reference: Float[np.ndarray, "N T"] | None = None
        self.alternative_reference: list[Float[np.ndarray, "N T"]] = []
        self.row_weight: Float[np.ndarray, " N"] | None = None

    def remember_reference(self, apply_fn: Any, trained: Any) -> None:
        """Compute the reference's -log p of the forget texts, if it is needed."""
        if not self.method.cached_reference:
            return

        def nll(texts: EncodedAnswers) -> Float[np.ndarray, "N T"]:
            found = np.zeros(texts.input_ids.shape, np.float32)
            for rows, batch in self._in_order(texts):
                own = fetch(reference_nll(apply_fn, trained, batch))
                found[rows, : own.shape[1]] = own[: len(rows)]
            return found

        self.reference = nll(self.forget)
        self.alternative_reference = [nll(texts) for texts in self.alternatives]

    def all_forget(self) -> Iterator[TextBatch]:
        """Forget texts in order, on the devices."""
        return (batch for _, batch in self._in_order(self.forget))

    def some_retain(self) -> Iterator[TextBatch]:
        """An even sample of the retain texts (files may be sorted), on the devices."""
        if self.retain is None:
            return
        texts = len(self.retain.input_ids)
        count = min(texts, self.config.prepare_texts)
        for _, batch in self._in_order(self.retain, np.arange(count) * texts // count):
            yield batch

    def _in_order(
        self, texts: EncodedAnswers, chosen: Int[np.ndarray, " n"] | None = None
    ) -> Iterator[tuple[Int[np.ndarray, " B"], TextBatch]]:
        chosen = np.arange(len(texts.input_ids)) if chosen is None else chosen
        for start in range(0, len(chosen), self.size):
            rows = chosen[start : start + self.size]
            batch = self._texts(texts, *self._filled(rows))
            yield rows, self.executor.place_rows(batch)

    def batch_at(self, step: int) -> PairBatch:
        """This process's host rows of one update."""
        rows, weight = self.order[step // self.method.forget_every]
        if self.method.forget() is None:
            assert self.retain is not None
            return PairBatch(
                None, self._texts(self.retain, *self._filled(rows, weight))
            )
        if self.row_weight is not None:
            weight = weight * self.row_weight[rows]
        rows, weight = self._filled(rows, weight)
        batch = self._texts(self.forget, rows, weight, self.reference)
        if self.alternatives:
            options = len(self.alternatives)
            which = _draw(self.config.seed, _ALTERNATIVE, step, options, len(rows))
            batch = batch._replace(alternative=self._alternative(rows, weight, which))
        retain = None
        if self.retain is not None:
            options, count = len(self.retain.input_ids), self.config.batch_size
            drawn = _draw(self.config.seed, _RETAIN, step, options, count)
            retain = self._texts(self.retain, *self._filled(drawn))
        return PairBatch(batch, retain)

    def _filled(
        self, rows: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows and their weights (1), padded with rows of weight 0 to a batch."""
        weight = np.ones(len(rows)) if weight is None else weight
        extra = (0, self.size - len(rows))
        return np.pad(rows, extra), np.pad(weight, extra).astype(np.float32)

    def _texts(
        self,
        texts: EncodedAnswers,
        rows: np.ndarray,
        weight: np.ndarray,
        reference: Float[np.ndarray, "N T"] | None = None,
    ) -> TextBatch:
        """This process's share of the rows as a batch, cut to one of a few widths."""
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

        def chosen(versions: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([versions[k][i] for k, i in zip(which, rows, strict=True)])

        texts = EncodedAnswers(*map(chosen, zip(*self.alternatives, strict=True)))
        cached = self.alternative_reference
        reference = chosen(cached) if cached else None
        return self._texts(texts, np.arange(len(rows)), weight, reference)


def _draw(seed: int, stream: int, step: int, options: int, count: int) -> np.ndarray:
    """Integers below `options`, independent of machine and NumPy version."""
    philox = np.random.Philox(key=[seed % 2**64, step], counter=[stream, 0, 0, 0])
    return (philox.random_raw(count) % np.uint64(options)).astype(np.int64)


def _random_labels(texts: EncodedAnswers, vocabulary: int, seed: int) -> EncodedAnswers:
    """The same prompts with random tokens for targets, drawn once."""
    drawn = _draw(seed, _RANDOM, 0, vocabulary, texts.input_ids.size)
    drawn = drawn.reshape(texts.input_ids.shape).astype(np.int32)
    return texts._replace(
        input_ids=np.where(texts.label_mask != 0, drawn, texts.input_ids)
    )
