"""Shuffled epochs of row numbers, index-addressable, in static shapes."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.errors import InputError

_WORD = 2**64


class Batch(NamedTuple):
    """Rows of one step; padding repeats row 0 with weight 0."""

    rows: Int[np.ndarray, " B"]
    """int64 row numbers into the data."""
    weight: Float[np.ndarray, " B"]
    """float32; 1 for a real row, 0 for padding."""


class Batches:
    """The batches of all steps of a run; see `batch_indices`.

    `batches[step]` depends on the construction arguments only, so a resumed run reads
    the same rows as an uninterrupted one.
    """

    def __init__(
        self, n: int, batch_size: int, *, seed: int, epochs: int, shuffle: bool
    ):
        self._n = n
        self._batch_size = batch_size
        self._seed = seed if shuffle else None
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


def batch_indices(
    n: int, batch_size: int, *, seed: int, epochs: int = 1, shuffle: bool = True
) -> Batches:
    """Batches of row numbers that visit each of `n` rows once per epoch.

    Every epoch has its own order, which `seed` (any integer) decides; without `shuffle`
    it is 0 to n - 1. `batch_size` counts the rows of all processes. The last batch of
    an epoch is padded with rows of weight 0, so shapes never change.

    Raises:
      InputError: no rows, a batch size below 1, or epochs below 0.
    """
    if n < 1:
        raise InputError("no rows to make batches of; the data is empty")
    if batch_size < 1 or epochs < 0:
        raise InputError(
            f"batch size {batch_size} and {epochs} epochs; expected at least 1 and 0"
        )
    return Batches(n, batch_size, seed=seed, epochs=epochs, shuffle=shuffle)


def length_buckets(length: int) -> tuple[int, ...]:
    """Widths of batches, ascending: quarters of the longest, rounded up to eights.

    Each compiles a program, so only those that save at least a sixth are kept.
    """
    shorter = {-(-length * quarters // 32) * 8 for quarters in (1, 2, 3)}
    return (*sorted(n for n in shorter if 6 * n <= 5 * length), length)


def bucket_of(longest: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds `longest` tokens."""
    return next(width for width in buckets if width >= longest)


class BatchPlan(NamedTuple):
    """Texts that are processed together."""

    rows: Int[np.ndarray, " B"]
    """Row numbers."""
    width: int
    """Padded length in tokens."""


def plan_batches(
    lengths: Sequence[Int[np.ndarray, " N"]], size: int, buckets: Sequence[int]
) -> list[list[BatchPlan]]:
    """The batches of each process: texts of similar length together, longest first.

    All processes get the same number of batches with the same widths, so that they run
    the same programs in the same order; a batch may be empty.

    Args:
      lengths: for each process, the number of tokens of its texts.
      size: maximum number of texts of one process in a batch.
      buckets: possible widths, ascending.
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
    """A permutation of 0 to n - 1 that is the same with every NumPy version.

    NumPy guarantees only the raw Philox stream, not `Generator.permutation`.
    """
    key = np.array([seed % _WORD, epoch], np.uint64)
    words = np.random.Philox(key=key).random_raw(n)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order
