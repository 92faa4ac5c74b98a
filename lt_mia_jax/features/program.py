"""The compiled step of extraction: two forward passes, then all reductions.

Nothing of vocabulary size leaves it.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, check_fields
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.blocks import HALF_MAX
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics

_RANGES = {
    "k": NOT_NEGATIVE,
    "batch_size": AT_LEAST_1,
    "block_batches": AT_LEAST_1,
    "logits_gib": POSITIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How texts are turned into statistics."""

    k: int = 20
    """Top-k and bottom-k tokens per step (7 k + 14 columns); 0 gives no features."""
    batch_size: int = 16
    """Texts per forward pass over all devices; rounded up to their number."""
    block_batches: int = 16
    """Batches per file of a store; an interruption loses at most one file's work."""
    log_probabilities: bool = False
    """Use log-probabilities in the features, not raw logits (which are published)."""
    vocab_size: int | None = None
    """Keep only the first entries of the vocabulary (published features keep all)."""
    vocab_chunk: int | None = None
    """Vocabulary entries reduced at a time; lower it when memory is short."""
    logits_gib: float = 1.0
    """Device memory for the logits of both models. Larger batches are processed in
    slices, down to one text."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        check_fields("extraction", self, _RANGES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """Both forward passes and all reductions; equal values share a compiled program."""

    target: Any
    """The model under audit."""
    reference: Any
    """The model it was fine-tuned from, or None."""
    config: ExtractConfig
    half: bool = False
    """Return `columns` as 16-bit floats."""

    def on(self, executor: Executor) -> Any:
        """The compiled function (target and reference parameters, ids, mask)."""
        return _compiled(self, executor.kind == "pmap", executor.mesh)

    def logits(
        self, target_params: Any, reference_params: Any, input_ids: Any
    ) -> list[Array]:
        """Of one or both models, `"B T V"`."""
        found = [self.target.apply(target_params, input_ids)]
        if self.reference is not None:
            found.append(self.reference.apply(reference_params, input_ids))
        return found

    def in_parts(
        self,
        target_params: Any,
        reference_params: Any,
        ids: Array,
        mask: Array,
        part: Callable[[Array, Array], TokenStatistics],
        devices: int,
    ) -> TokenStatistics:
        """`part(ids, mask)`, with as many texts at a time as `logits_gib` allows.

        Each device goes through its own texts: rows do not change places.
        """
        logits = jax.eval_shape(self.logits, target_params, reference_params, ids)
        size = sum(x.size * x.dtype.itemsize for x in logits) / devices
        texts = ids.shape[0] // devices
        wanted = size / (self.config.logits_gib * 2**30)
        parts = next(
            n
            for n in range(1, texts + 1)
            if n == texts or (n >= wanted and texts % n == 0)
        )
        if parts == 1:
            return part(ids, mask)

        def split(x: Array) -> Array:
            by_device = x.reshape(devices, parts, -1, *x.shape[1:])
            return by_device.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

        def join(x: Array) -> Array:
            by_part = x.reshape(parts, devices, -1, *x.shape[2:])
            return by_part.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        found = jax.lax.map(lambda rows: part(*rows), (split(ids), split(mask)))
        return jax.tree.map(join, found)

    def reduce(self, ids: Array, mask: Array, *logits: Array) -> TokenStatistics:
        """Statistics of rows that are on one device."""
        stats = token_statistics(
            logits[0],
            logits[1] if len(logits) == 2 else None,
            ids,
            mask,
            k=self.config.k,
            vocab_chunk=self.config.vocab_chunk,
            log_probabilities=self.config.log_probabilities,
            vocab_size=self.config.vocab_size,
        )
        if self.half and stats.columns is not None:
            columns = jnp.clip(stats.columns, -HALF_MAX, HALF_MAX)
            stats = stats._replace(columns=columns.astype(jnp.float16))
        return stats


@lru_cache(maxsize=16)
def _compiled(program: Extraction, by_device: bool, mesh: Mesh) -> Any:
    """The program under `pmap`, or that of a batch which is split over a mesh."""
    reduce, devices = program.reduce, 1
    if not by_device:
        rows, devices = P(("data", "fsdp")), mesh.size
        # The loops over rows must stay on each device: left to the compiler, slicing a
        # sharded array inside a loop would gather it.
        reduce = jax.shard_map(
            reduce, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )

    def run(target: Any, reference: Any, ids: Array, mask: Array) -> TokenStatistics:
        def part(ids: Array, mask: Array) -> TokenStatistics:
            return reduce(ids, mask, *program.logits(target, reference, ids))

        return program.in_parts(target, reference, ids, mask, part, devices)

    if not by_device:
        return jax.jit(run)
    in_axes = (None, None, 0, 0)
    return jax.pmap(run, in_axes=in_axes, devices=list(mesh.devices.flat))
