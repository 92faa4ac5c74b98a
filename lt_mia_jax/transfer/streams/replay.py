"""Experience replay: items of earlier tasks beside those of the current one.

Source: LIBERO, arXiv 2306.03310. Kept: uniform storage, an equal-size replay half in
each batch, 1000 items a task. Not kept: trajectories, robots and policies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Int, Key

Batch = Any  # a pytree of arrays with the items on their leading axis


class Replay(NamedTuple):
    """Stored items of earlier tasks, one task after the other; a pytree."""

    items: Batch
    task: Int[Array, "N"] | Int[np.ndarray, "N"]

    @property
    def size(self) -> int:
        """Number of stored items."""
        return self.task.shape[0]


EMPTY = Replay(None, np.zeros(0, np.int32))


def remember(
    replay: Replay,
    items: Batch,
    key: Key[Array, ""],
    *,
    share: float | None = None,
    capacity: int = 1000,
) -> Replay:
    """The buffer with items of one more task, drawn without replacement.

    `share` of `items` are stored, such as 0.02, rounded; without it `capacity` of them,
    at most all. 0 leaves the buffer as it is.

    Example:
      >>> remember(EMPTY, jnp.arange(100), jax.random.key(0), share=0.02).size
      2
    """
    rows = len(jax.tree.leaves(items)[0])
    if not 0 <= (share or 0) <= 1 or capacity < 0:
        raise ValueError(f"remember: share = {share}, capacity = {capacity}")
    count = min(rows, capacity if share is None else round(share * rows))
    if not count:
        return replay
    kept = _rows(items, jax.random.permutation(key, rows)[:count])
    number = jnp.full(count, 1 + jnp.max(replay.task, initial=-1), jnp.int32)
    if replay.items is not None:
        kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), replay.items, kept)
    return Replay(kept, jnp.concatenate([replay.task, number]))


def sample(replay: Replay, key: Key[Array, ""], rows: int) -> Batch:
    """Items drawn uniformly, with replacement, from all that are stored."""
    return _rows(replay.items, jax.random.randint(key, (rows,), 0, replay.size))


def mixed_batch(batch: Batch, replay: Replay, key: Key[Array, ""]) -> Batch:
    """The batch, then as many replayed items; the batch alone if nothing is stored.

    Example:
      >>> stored = remember(EMPTY, jnp.array([7]), jax.random.key(0))
      >>> mixed_batch(jnp.array([1, 2]), stored, jax.random.key(1))
      Array([1, 2, 7, 7], dtype=int32)
    """
    if not replay.size:
        return batch
    old = sample(replay, key, len(jax.tree.leaves(batch)[0]))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, old)


def _rows(items: Batch, index: Int[Array, "B"]) -> Batch:
    return jax.tree.map(lambda x: jnp.asarray(x)[index], items)
