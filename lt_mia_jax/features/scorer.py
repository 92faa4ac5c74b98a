"""A pair of models on the devices, scoring texts batch by batch.

While a batch is computed, the one before it is copied and used. Texts of like length
share a batch, which is cut to a few lengths.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.data.batches import BatchPlan, length_buckets, plan_batches
from lt_mia_jax.data.tokenize import scored_mask
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.program import ExtractConfig, Extraction
from lt_mia_jax.features.statistics import TokenStatistics, without_context

_LIVE = 2
"""Batches on the device at a time: one computed, one copied back."""


@runtime_checkable
class Model(Protocol):
    """What extraction needs of a model: a hashable value with a pure `apply`."""

    def apply(self, params: Params, input_ids: Any) -> Array:
        """Logits `"B T V"`; position t scores token t + 1."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """Token ids and mask of N texts, padded on the right to T tokens.

    A further field `scored` (bool `"N T"`, or None) may mark the tokens that are no
    context; see `data.tokenize.Encoded`.
    """

    @property
    def input_ids(self) -> Integer[np.ndarray, "N T"]:
        """Token ids."""
        ...

    @property
    def attention_mask(self) -> Integer[np.ndarray, "N T"]:
        """1 on real tokens."""
        ...


class TextStatistics(NamedTuple):
    """Statistics, features and mask of some texts as NumPy arrays."""

    statistics: TokenStatistics
    features: Float[np.ndarray, "B T C"] | None
    """None when k is 0 or there is no reference."""
    mask: Bool[np.ndarray, "B T"]


class StatisticsExtractor:
    """A pair of models on the device, ready to score any number of texts.

    `scorer(encoded)` gives statistics and features of all texts at once, in memory;
    `extract` is the way for more texts than fit.
    """

    def __init__(
        self,
        target_model: Model,
        target_params: Params,
        reference_model: Model | None,
        reference_params: Params | None,
        config: ExtractConfig | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Place both models on the devices; no executor takes all.

        Without a reference, everything that compares with it is left out. Parameters
        may be on the host or on a device. What compares the models is over the ids
        that both have.
        """
        self.config = ExtractConfig() if config is None else config
        self.executor = make_executor() if executor is None else executor
        self._own = self.vocab_size = _vocabulary(target_model, target_params)
        if reference_model is not None:
            other = _vocabulary(reference_model, reference_params)
            self.vocab_size = min(self._own, other)
        self._target, self._reference = target_model, reference_model
        self._target_params = self.executor.place(target_params)
        self._reference_params = self.executor.place(reference_params)

    def __call__(
        self, encoded: Encoded, ids: Sequence[str] | None = None
    ) -> TextStatistics:
        """Statistics (with `columns`), features and mask; see `statistics`."""
        stats = self.statistics(encoded, ids)
        if stats.columns is None:
            return TextStatistics(stats, None, stats.valid)
        features, mask = assemble(stats)
        return TextStatistics(stats, features, mask)

    def statistics(
        self,
        encoded: Encoded,
        ids: Sequence[str] | None = None,
        *,
        half: bool = False,
        target_only: bool = False,
        plan: Sequence[BatchPlan] | None = None,
        on_batch: Callable[[int], Any] = lambda texts: None,
    ) -> TokenStatistics:
        """Statistics of all texts, in their order, as NumPy arrays.

        Steps that predict context are left out (`without_context`). Several processes
        call this at the same time, each with its own texts and its own element of one
        `plan`, which says what texts go together.

        Args:
          encoded: the texts.
          ids: names for error messages; None numbers them.
          half: return `columns` as 16-bit floats.
          target_only: leave the reference out.
          plan: None makes one for a single process.
          on_batch: told the number of texts of each batch that is done.

        Raises:
          InputError: a token outside the vocabulary, or logits that are not finite.
        """
        texts, length = encoded.input_ids.shape
        names = [f"number {n + 1}" for n in range(texts)] if ids is None else ids
        known = self._own if target_only else self.vocab_size
        self._check_tokens(encoded, names, min(self.config.vocab_size or known, known))
        if plan is None:
            if jax.process_count() > 1:
                raise InputError(
                    f"texts are scored in one process, found {jax.process_count()}; "
                    "leave --distributed off, or extract features instead"
                )
            plan = self.plan([encoded])[0]
        running: list[tuple[BatchPlan, TokenStatistics]] = []
        filled: TokenStatistics | None = None

        def finish(batch: BatchPlan, stats: TokenStatistics) -> None:
            nonlocal filled
            host = self._fetch(batch.rows, stats, names)
            if filled is None:
                filled = jax.tree.map(
                    lambda x: np.zeros((texts, length, *x.shape[2:]), x.dtype), host
                )
            # Batches are narrower than the texts' padding.
            for whole, part in zip(*map(jax.tree.leaves, (filled, host)), strict=True):
                whole[batch.rows, : part.shape[1]] = part
            on_batch(len(batch.rows))

        for batch in plan:
            stats = self._run(encoded, batch, half=half, target_only=target_only)
            running.append((batch, stats))
            if len(running) == _LIVE:
                finish(*running.pop(0))
        for batch, stats in running:
            finish(batch, stats)
        assert filled is not None, "a plan has at least one batch"
        filled = filled._replace(input_ids=np.asarray(encoded.input_ids, np.int32))
        return without_context(filled)

    def plan(self, shares: Sequence[Encoded]) -> list[list[BatchPlan]]:
        """For each process the batches of its share of the texts."""
        size = self.executor.round_up(self.config.batch_size) // len(shares)
        return plan_batches(
            [(np.asarray(x.attention_mask) != 0).sum(axis=1) for x in shares],
            size,
            length_buckets(shares[0].input_ids.shape[1]),
        )

    def _run(
        self, encoded: Encoded, batch: BatchPlan, *, half: bool, target_only: bool
    ) -> TokenStatistics:
        size = self.executor.round_up(self.config.batch_size) // jax.process_count()

        def rows(x: np.ndarray) -> np.ndarray:
            # Rows of zeros up to the static size: masked, so without effect.
            taken = np.asarray(x)[batch.rows, : batch.width].astype(np.int32)
            return np.pad(taken, ((0, size - len(taken)), (0, 0)))

        # Real tokens have been checked; the id of padding may lie beyond the embedding.
        last = (self._own if target_only else self.vocab_size) - 1
        tokens = self.executor.place_batch(
            (np.minimum(rows(encoded.input_ids), last), rows(scored_mask(encoded)))
        )
        alone = target_only or self._reference is None
        program = Extraction(
            target=self._target,
            reference=None if alone else self._reference,
            config=dataclasses.replace(self.config, k=0) if alone else self.config,
            half=half,
        )
        reference_params = None if alone else self._reference_params
        run = program.on(self.executor)
        return run(self._target_params, reference_params, *tokens)

    def _fetch(
        self, rows: np.ndarray, stats: TokenStatistics, names: Sequence[str]
    ) -> TokenStatistics:
        """Statistics of real rows on the host; refuses those of broken logits."""
        host = jax.tree.map(lambda x: x[: len(rows)], self.executor.fetch_rows(stats))
        moments = ("target_mean", "target_var", "reference_mean", "cross_mean")
        for model, fields in (
            ("the target", ("target_log_prob",)),
            ("the reference", ("reference_log_prob",)),
            ("the target or the reference", (*moments, "cross_var", "columns")),
        ):
            bad = np.zeros(len(rows), bool)
            for values in (getattr(host, field) for field in fields):
                if values is None:
                    continue
                # Columns are clipped to 16-bit floats: only NaN is wrong there.
                wrong = np.isnan(values) if values.ndim == 3 else ~np.isfinite(values)
                bad |= wrong.any(axis=tuple(range(1, wrong.ndim)))
            if bad.any():
                named = [names[int(row)] for row in sorted(rows[bad].tolist())]
                shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
                raise InputError(
                    f"{model} gives logits that are NaN or infinite on {len(named)} of "
                    f"{len(rows)} texts ({shown}); check its weights, or compute in "
                    "float32"
                )
        return host

    def _check_tokens(self, encoded: Encoded, names: Sequence[str], limit: int) -> None:
        tokens = np.asarray(encoded.input_ids)
        real = np.asarray(encoded.attention_mask) != 0
        wrong = ((tokens < 0) | (tokens >= limit)) & real
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            raise InputError(
                f"text {names[row]} has token {tokens[row, column]} but the "
                f"models predict ids below {limit}; use the tokenizer of these models, "
                "or leave that text out"
            )


def _vocabulary(model: Model, params: Any) -> int:
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.apply, params, ids).shape[-1]
