"""Epochs of row numbers: shuffled, index-addressable, in static shapes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.errors import InputError

_WORD = 2**64


class Batch(NamedTuple):
    """Rows of one step; padding rows repeat row 0 and weigh nothing."""

    rows: Int[np.ndarray, " B"]
    """int64 row numbers into the data."""
    weight: Float[np.ndarray, " B"]
    """float32; 1 for a real row, 0 for padding."""


class Batches:
    """All steps of a run: `len(batches)` of them, `batches[step]` is one.

    Any step can be asked for at any time and depends on the construction arguments
    alone, so a resumed run reads what an uninterrupted one would have read. Made by
    `batch_indices`.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        shuffle: bool,
        shard: tuple[int, int],
    ):
        self._n = n
        self._batch_size = batch_size
        self._seed = seed if shuffle else None
        self._shard = shard
        self._describes = (n, batch_size, seed, epochs, shuffle, shard)
        self.steps_per_epoch = -(-n // batch_size)
        self._steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch:
        """The batch of one step, from 0; this process's share of it.

        Raises:
          IndexError: no such step.
        """
        if not 0 <= index < self._steps:
            raise IndexError(f"step {index} of {self._steps}")
        epoch, position = divmod(int(index), self.steps_per_epoch)
        process, processes = self._shard
        share = self._batch_size // processes
        first = position * self._batch_size + process * share
        real = max(0, min(share, self._n - first))
        rows = np.zeros(share, np.int64)
        weight = np.zeros(share, np.float32)
        if self._seed is None:
            rows[:real] = np.arange(first, first + real)
        else:
            rows[:real] = _order(self._n, self._seed, epoch)[first : first + real]
        weight[:real] = 1.0
        return Batch(rows, weight)

    def __repr__(self) -> str:
        # Grain compares this text when it restores an iterator over the batches.
        return f"Batches{self._describes}"

    def dataset(self, read: Callable[[Batch], Any]) -> grain.MapDataset:
        """A Grain dataset whose element `step` is `read(self[step])`.

        `.to_iter_dataset(grain.ReadOptions(...))` reads ahead in threads; its state is
        the next step.
        """
        return grain.MapDataset.source(self).map(read)


def batch_indices(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epochs: int = 1,
    shuffle: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches of row numbers that visit each of `n` rows once an epoch.

    Every epoch has its own order, fixed by `seed`. The last batch of an epoch is
    filled up with rows of weight 0, so shapes never change.

    Args:
      n: rows of the data.
      batch_size: rows a step, over all processes.
      seed: any integer.
      epochs: passes over the data.
      shuffle: False keeps the order 0 to n - 1, as scoring wants it.
      shard: (process, processes): each process gets its own slice of every batch.

    Raises:
      InputError: no rows, or sizes that do not fit.
    """
    process, processes = shard
    if n < 1:
        raise InputError("no rows to make batches of; the data is empty")
    if batch_size < 1 or epochs < 0:
        raise InputError(
            f"batch size {batch_size} and {epochs} epochs; expected at least 1 and 0"
        )
    if not 0 <= process < processes or batch_size % processes:
        raise InputError(
            f"shard {process} of {processes} with batch size {batch_size}; the batch "
            "size must be a multiple of the number of processes"
        )
    return Batches(
        n, batch_size, seed=seed, epochs=epochs, shuffle=shuffle, shard=shard
    )


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """A permutation of 0 to n - 1, the same with every NumPy version.

    Sorting raw Philox words instead of `Generator.permutation` because NumPy promises
    only the raw stream to stay as it is.
    """
    key = np.array([seed % _WORD, epoch], np.uint64)
    words = np.random.Philox(key=key).random_raw(n)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order
