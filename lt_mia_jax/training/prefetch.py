"""Batches of consecutive steps, read ahead by one thread."""

from collections.abc import Callable
from typing import Any

import grain

from lt_mia_jax.errors import InputError

AHEAD = 2
"""Batches that may wait; one more may be in the making."""


class Prefetcher:
    """Calls `batch_at(step)` for `start`, `start + 1`, ... while earlier steps run.

    A context manager: the thread has ended when it is left. What `batch_at` raises for
    a step is raised, as it is, when that step is asked for.
    """

    def __init__(
        self,
        batch_at: Callable[[int], Any],
        total_steps: int,
        *,
        start: int = 0,
        state: dict[str, Any] | None = None,
    ):
        """Begin at `start`; the first batch is read when it is asked for.

        `batch_at` gives host arrays. A `state` that was saved must stand at `start`.
        """
        expected = {"next_index": start}
        if state is not None and state != expected:
            raise InputError(
                f"the checkpoint of step {start} has read input up to {state}, "
                f"expected {expected}; delete its folder by hand to start again"
            )
        steps = grain.MapDataset.source(range(total_steps)).map(batch_at)
        # No threads of this stage: the next one has one, which it ends when closed.
        plain = steps.to_iter_dataset(grain.ReadOptions(0, 0))
        ahead = grain.experimental.ThreadPrefetchIterDataset(
            plain, prefetch_buffer_size=AHEAD
        )
        self._iterator = iter(ahead)
        self._iterator.set_state(expected)

    def __next__(self) -> Any:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Where the next batch comes from, as JSON values."""
        return self._iterator.get_state()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._iterator.close()
        # Grain's finalizer would close again, and complain while Python shuts down.
        del self._iterator
