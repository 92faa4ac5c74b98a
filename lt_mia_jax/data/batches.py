"""Epochs of row numbers: shuffled, index-addressable, in static shapes."""

import functools
from collections.abc import Callable, Sequence
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
        self, n: int, batch_size: int, *, seed: int, epochs: int, shuffle: bool
    ):
        self._n = n
        self._batch_size = batch_size
        self._seed = seed if shuffle else None
        self._describes = (n, batch_size, seed, epochs, shuffle)
        self.steps_per_epoch = -(-n // batch_size)
        self._steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch:
        """The batch of one step, from 0.

        Raises:
          IndexError: no such step.
        """
        if not 0 <= index < self._steps:
            raise IndexError(f"step {index} of {self._steps}")
        epoch, position = divmod(int(index), self.steps_per_epoch)
        first = position * self._batch_size
        real = min(self._batch_size, self._n - first)
        rows = np.zeros(self._batch_size, np.int64)
        weight = np.zeros(self._batch_size, np.float32)
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
    n: int, batch_size: int, *, seed: int, epochs: int = 1, shuffle: bool = True
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

    Raises:
      InputError: no rows, or sizes that do not fit.
    """
    if n < 1:
        raise InputError("no rows to make batches of; the data is empty")
    if batch_size < 1 or epochs < 0:
        raise InputError(
            f"batch size {batch_size} and {epochs} epochs; expected at least 1 and 0"
        )
    return Batches(n, batch_size, seed=seed, epochs=epochs, shuffle=shuffle)


def length_buckets(length: int) -> tuple[int, ...]:
    """Lengths that batches are cut to, ascending: quarters of the longest, by eights.

    Few, since a program is compiled for each; so none saves less than a sixth.
    """
    shorter = {-(-length * quarters // 32) * 8 for quarters in (1, 2, 3)}
    return (*sorted(n for n in shorter if 6 * n <= 5 * length), length)


def bucket_of(longest: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds `longest` tokens."""
    return next(width for width in buckets if width >= longest)


class BatchPlan(NamedTuple):
    """Texts that go through the models together."""

    rows: Int[np.ndarray, " B"]
    """Their numbers."""
    width: int
    """Tokens that they are padded to."""


def plan_batches(
    lengths: Sequence[Int[np.ndarray, " N"]], size: int, buckets: Sequence[int]
) -> list[list[BatchPlan]]:
    """For each process its batches: texts of like length together, longest first.

    All processes get equally many batches, and the widths of one number agree, so
    that they run the same programs in the same order; a batch may be empty.

    Args:
      lengths: for each process the real tokens of its texts.
      size: most texts of one process in a batch.
      buckets: widths to choose from, ascending.
    """
    orders = [np.argsort(-x, kind="stable") for x in lengths]
    steps = max(1, *(-(-len(order) // size) for order in orders))
    plans: list[list[BatchPlan]] = [[] for _ in lengths]
    for start in range(0, steps * size, size):
        rows = [order[start : start + size] for order in orders]
        longest = max(
            int(x[r].max(initial=0)) for x, r in zip(lengths, rows, strict=True)
        )
        width = bucket_of(longest, buckets)
        for plan, r in zip(plans, rows, strict=True):
            plan.append(BatchPlan(r, width))
    return plans


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
