"""Batches of an update, in which short texts share rows: padding costs as steps do."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.data.batches import Batch
from lt_mia_jax.executor import Executor

SLOTS = 8
"""Most texts in a row."""
PARTS, LEAST = 16, 8
"""A batch has a multiple of so many of its parts, and of rows: each number of rows has
a program of its own."""


class StepBatch(NamedTuple):
    """Host arrays of one update, of B texts or of R rows of up to S texts.

    Texts of weight 0 fill it up.
    """

    features: Any
    """`"B T C"` or `"R T C"`."""
    mask: Any
    """Steps that count, `"B T"` or `"R T"`."""
    labels: Any
    """`"B"` or `"R S"`."""
    weight: Any
    """`"B"` or `"R S"`."""
    segments: Any = None
    """Which of its row's texts a step belongs to, `"R T"`; -1 none. None: one each."""


def pack(
    lengths: Int[np.ndarray, " B"], capacity: int, slots: int = SLOTS
) -> Int[np.ndarray, "R S"]:
    """Put texts into as few rows as best-fit decreasing finds.

    A row has room for `capacity` steps and `slots` texts; texts without a step are left
    out. Returns the numbers of the texts in each row, -1 in slots without one.

    Source: Johnson, Worst-case performance bounds for simple one-dimensional packing
    algorithms, SIAM J. Comput. 3 (1974).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    some = 0  # bit r: a row has room for r steps
    for text in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[text])
        if not need:
            break
        fitting = some >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                some &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(text)
        left = room - need
        if left and len(rows[row]) < slots:
            with_room[left].append(row)
            some |= 1 << left
    packed = np.full((len(rows), slots), -1)
    for row, texts in enumerate(rows):
        packed[row, : len(texts)] = texts
    return packed


def read_batch(
    rows: Rows, batch: Batch, executor: Executor, *, slices: int = 1, packed: bool
) -> StepBatch:
    """This process's part of a batch whose texts all processes know.

    If `packed`, short texts share rows where that leaves fewer of them, which also
    depends on devices and on `slices`, the parts of a batch that are computed one after
    the other. The loss does not depend on it, but draws of dropout do.
    """
    # Rows of weight 0 fill up what devices and slices divide: how many texts an update
    # sees, and so the length of an epoch, does not depend on the devices.
    unit = executor.mesh.size * slices
    extra = -len(batch.rows) % unit
    if packed:
        steps = np.where(batch.weight > 0, rows.steps[batch.rows], 0)
        slots = pack(steps, rows.length)
        grain = -(-max(LEAST, -(-len(batch.rows) // PARTS)) // unit) * unit
        missing = grain if not len(slots) else -len(slots) % grain
        if len(slots) + missing < len(batch.rows) + extra:
            filled = np.pad(slots, ((0, missing), (0, 0)), constant_values=-1)
            return _read_packed(rows, batch, executor.share(filled))
    numbers, weight = (executor.share(np.pad(x, (0, extra))) for x in batch)
    features, mask = rows.read(numbers)
    # Texts without a valid step have no logit and take no part.
    weight = (weight * mask.any(axis=1)).astype(np.float32)
    return StepBatch(features, mask, rows.labels[numbers], weight)


def _read_packed(rows: Rows, batch: Batch, slots: Int[np.ndarray, "R S"]) -> StepBatch:
    used = slots >= 0
    row, slot = np.nonzero(used)
    numbers = batch.rows[slots[used]]
    steps = rows.steps[numbers]
    lengths = np.zeros(slots.shape, np.int64)
    lengths[used] = steps
    starts = (np.cumsum(lengths, axis=1) - lengths)[used]
    within = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
    source = np.repeat(np.arange(len(numbers)), steps), within
    target = np.repeat(row, steps), np.repeat(starts, steps) + within

    read = rows.read(numbers)
    shape = len(slots), rows.length
    features = np.zeros((*shape, rows.columns), read.features.dtype)
    features[target] = read.features[source]
    mask = np.zeros(shape, bool)
    mask[target] = read.mask[source]
    segments = np.full(shape, -1, np.int8)
    segments[target] = np.repeat(slot, steps)
    labels = np.zeros(slots.shape, np.float32)
    weight = np.zeros(slots.shape, np.float32)
    labels[used] = rows.labels[numbers]
    weight[used] = batch.weight[slots[used]]
    return StepBatch(features, mask, labels, weight, segments)
