"""A pair of models on the devices, scoring texts batch by batch.

One compiled function holds both forward passes and all reductions, so that nothing of
vocabulary size leaves the device. While a batch is computed, the one before it is
copied and used.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Integer

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.blocks import HALF_MAX
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics
from lt_mia_jax.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    round_up,
)

_LIVE = 2
"""Batches on the device at a time: one computed, one copied back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How texts are turned into statistics."""

    k: int = 20
    """Head and tail tokens per step (7 k + 14 columns); 0 leaves the features out."""

    batch_size: int = 16
    """Texts per forward pass over all devices; rounded up to their number."""

    block_batches: int = 16
    """Batches per file of a store; an interruption loses at most one file's work."""

    fsdp: int = 1
    """Devices that share one copy of the parameters."""

    log_probabilities: bool = False
    """Put log-probabilities instead of raw logits into the features (not as published).
    """

    vocab_size: int | None = None
    """Keep only the first entries of the vocabulary (the published features keep all).
    """

    vocab_chunk: int | None = None
    """Vocabulary entries reduced at a time; lower it when memory is short."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        if min(self.batch_size, self.block_batches, self.fsdp) < 1 or self.k < 0:
            raise InputError(
                f"batch_size {self.batch_size}, block_batches {self.block_batches}, "
                f"fsdp {self.fsdp}, k {self.k}: expected at least 1 (k: 0)"
            )


@runtime_checkable
class Model(Protocol):
    """What extraction needs of a model: a hashable value with a pure `apply`."""

    def apply(self, params: Params, input_ids: Any) -> Array:
        """Logits `"B T V"`; position t scores token t + 1."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """Token ids and mask of N texts, padded on the right to T tokens."""

    @property
    def input_ids(self) -> Integer[np.ndarray, "N T"]:
        """Token ids."""
        ...

    @property
    def attention_mask(self) -> Integer[np.ndarray, "N T"]:
        """1 on real tokens."""
        ...


class Scored(NamedTuple):
    """Statistics, features and mask of some texts as NumPy arrays."""

    statistics: TokenStatistics
    features: Float[np.ndarray, "B T C"] | None
    """None when k is 0 or there is no reference."""
    mask: Bool[np.ndarray, "B T"]


class TextScorer:
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
    ) -> None:
        """Place both models on all devices.

        Args:
          target_model: the model under audit.
          target_params: its parameters, on host or device.
          reference_model: the model it was fine-tuned from; None leaves everything
            out that compares with it.
          reference_params: its parameters.
          config: batch size, k and more.

        Raises:
          InputError: the models' vocabularies differ.
        """
        if jax.process_count() > 1:
            raise InputError(
                f"extraction runs in one process, found {jax.process_count()}; start "
                "one process per share of the texts"
            )
        self.config = ExtractConfig() if config is None else config
        self._mesh = make_mesh(fsdp=self.config.fsdp)
        self.vocab_size = _vocabulary(target_model, target_params)
        if reference_model is not None:
            other = _vocabulary(reference_model, reference_params)
            if other != self.vocab_size:
                raise InputError(
                    f"the target predicts {self.vocab_size} tokens and the reference "
                    f"{other}; both must share one tokenizer: pass the model that the "
                    "target was fine-tuned from"
                )
        self._target, self._reference = target_model, reference_model
        self._target_params = self._place(target_params)
        self._reference_params = self._place(reference_params)

    def __call__(self, encoded: Encoded, ids: Sequence[str] | None = None) -> Scored:
        """Statistics (with `columns`), features and mask of all texts.

        Args:
          encoded: the texts.
          ids: names for error messages; None numbers them.

        Raises:
          InputError: a token outside the vocabulary, or logits that are not finite.
        """
        stats = join(list(self.batches(encoded, ids)))
        if stats.columns is None:
            return Scored(stats, None, stats.valid)
        features, mask = assemble(stats)
        return Scored(stats, features, mask)

    def target_only(
        self, encoded: Encoded, ids: Sequence[str] | None = None
    ) -> TokenStatistics:
        """Statistics of the target alone, for other versions of the same texts."""
        return join(list(self.batches(encoded, ids, target_only=True)))

    def batches(
        self,
        encoded: Encoded,
        ids: Sequence[str] | None = None,
        *,
        half: bool = False,
        target_only: bool = False,
    ) -> Iterator[TokenStatistics]:
        """Statistics batch by batch, in order, as NumPy arrays without padding rows.

        Args:
          encoded: the texts.
          ids: names for error messages; None numbers them.
          half: return `columns` as 16-bit floats.
          target_only: leave the reference out.

        Raises:
          InputError: a token outside the vocabulary, or logits that are not finite.
        """
        n = len(encoded.input_ids)
        self._check_tokens(encoded, ids)
        alone = target_only or self._reference is None
        config = dataclasses.replace(self.config, k=0) if alone else self.config
        running: list[tuple[range, TokenStatistics]] = []
        for start in range(0, max(n, 1), self.config.batch_size):
            rows = range(start, min(start + self.config.batch_size, n))
            tokens, mask = (
                jax.device_put(self._padded(x[rows.start : rows.stop]), self._sharding)
                for x in (encoded.input_ids, encoded.attention_mask)
            )
            stats = _batch_statistics(
                self._target_params,
                None if alone else self._reference_params,
                tokens,
                mask,
                target=self._target,
                reference=None if alone else self._reference,
                mesh=self._mesh,
                config=config,
                half=half,
            )
            running.append((rows, stats))
            if len(running) == _LIVE:
                yield self._fetch(*running.pop(0), ids)
        for rows, stats in running:
            yield self._fetch(rows, stats, ids)

    @property
    def _sharding(self) -> jax.sharding.NamedSharding:
        return batch_sharding(self._mesh)

    def _place(self, params: Params | None) -> Params | None:
        if params is None:
            return None
        return jax.device_put(params, parameter_shardings(params, self._mesh))

    def _padded(self, rows: Integer[np.ndarray, "N T"]) -> Integer[np.ndarray, "B T"]:
        """Rows of zeros up to the static batch size: masked, so without effect."""
        size = round_up(self.config.batch_size, self._mesh)
        rows = np.asarray(rows).astype(np.int32)
        return np.pad(rows, ((0, size - len(rows)), (0, 0)))

    def _fetch(
        self, rows: range, stats: TokenStatistics, ids: Sequence[str] | None
    ) -> TokenStatistics:
        host = jax.tree.map(lambda x: np.asarray(x)[: len(rows)], stats)
        for model, name in (("target", "lp_t"), ("reference", "lp_r")):
            values = getattr(host, name)
            if values is not None:
                self._refuse(
                    ~np.isfinite(values).all(axis=1), rows, ids, f"the {model}"
                )
        moments = [host.mu_t, host.var_t, host.mu_r, host.xmu, host.xvar]
        bad = np.zeros(len(rows), bool)
        for values in moments:
            if values is not None:
                bad |= ~np.isfinite(values).all(axis=1)
        if host.columns is not None:
            bad |= np.isnan(host.columns).any(axis=(1, 2))
        self._refuse(bad, rows, ids, "the target or the reference")
        return host

    def _refuse(
        self, bad: np.ndarray, rows: range, ids: Sequence[str] | None, model: str
    ) -> None:
        if bad.any():
            named = [_text_name(rows[i], ids) for i in np.flatnonzero(bad)]
            shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
            raise InputError(
                f"{model} gives logits that are NaN or infinite on {len(named)} of "
                f"{len(rows)} texts ({shown}); check its weights, or compute in float32"
            )

    def _check_tokens(self, encoded: Encoded, ids: Sequence[str] | None) -> None:
        tokens = np.asarray(encoded.input_ids)
        real = np.asarray(encoded.attention_mask) != 0
        limit = self.config.vocab_size or self.vocab_size
        wrong = ((tokens < 0) | (tokens >= min(limit, self.vocab_size))) & real
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            raise InputError(
                f"text {_text_name(row, ids)} has token {tokens[row, column]} but the "
                f"models predict ids below {limit}; use the tokenizer of these models"
            )


@partial(jax.jit, static_argnames=("target", "reference", "mesh", "config", "half"))
def _batch_statistics(
    target_params: Any,
    reference_params: Any,
    input_ids: Any,
    attention_mask: Any,
    *,
    target: Any,
    reference: Any,
    mesh: Mesh,
    config: ExtractConfig,
    half: bool,
) -> TokenStatistics:
    """Both forward passes and all reductions of one batch."""
    logits = [target.apply(target_params, input_ids)]
    if reference is not None:
        logits.append(reference.apply(reference_params, input_ids))

    def reduce(ids: Array, mask: Array, *logits: Array) -> TokenStatistics:
        stats = token_statistics(
            logits[0],
            logits[1] if len(logits) == 2 else None,
            ids,
            mask,
            k=config.k,
            vocab_chunk=config.vocab_chunk,
            log_probabilities=config.log_probabilities,
            vocab_size=config.vocab_size,
        )
        if half and stats.columns is not None:
            columns = jnp.clip(stats.columns, -HALF_MAX, HALF_MAX)
            stats = stats._replace(columns=columns.astype(jnp.float16))
        return stats

    # The loops over rows must stay on each device: left to the compiler, slicing a
    # sharded array inside a loop would gather it.
    rows = P(("data", "fsdp"))
    reduce_locally = jax.shard_map(
        reduce, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    return reduce_locally(input_ids, attention_mask, *logits)


def _vocabulary(model: Model, params: Any) -> int:
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.apply, params, ids).shape[-1]


def join(parts: Sequence[TokenStatistics]) -> TokenStatistics:
    """Statistics of several batches as one; at least one batch is needed."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _text_name(row: int, ids: Sequence[str] | None) -> str:
    return f"number {row + 1}" if ids is None else str(ids[row])
