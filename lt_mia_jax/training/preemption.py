"""SIGTERM: finish the current step, save, stop."""

import itertools
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_calls = itertools.count()
"""Questions asked so far in this process. JAX has the processes agree on a number that
none of them has asked with yet, so numbers never start again, also not in the next
`fit`; all processes ask equally often."""


class StopRequest:
    """Notices SIGTERM while it is entered.

    A single process gets a handler of its own, from the main thread only; elsewhere
    SIGTERM does what it did. With several processes JAX listens, and a SIGTERM to any
    of them stops all after the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._installed = False
        self._earlier: Any = None

    def reached(self) -> bool:
        """Whether to stop now; every process asks once after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_calls))
        asked, self._asked = self._asked, False
        return asked

    def __enter__(self) -> "StopRequest":
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            self._earlier = signal.signal(signal.SIGTERM, self._note)
            self._installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._installed:
            return
        # None stands for a handler that Python did not install and cannot put back.
        earlier = signal.SIG_DFL if self._earlier is None else self._earlier
        signal.signal(signal.SIGTERM, earlier)
        self._installed = False
        if self._asked and kind is None:
            # It came after the last question: whoever listened before decides.
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True
