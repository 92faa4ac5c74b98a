"""Progress of long work: a bar on a terminal, a line in the log elsewhere."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tqdm import tqdm

from lt_mia_jax.executor import is_primary

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Progress:
    """How much of some work is done, how fast it goes, and how long it will take.

    Only the first of several processes shows it.

    Example:
      >>> from lt_mia_jax.training.progress import Progress
      >>> with Progress("scoring", 3, "text") as progress:
      ...     progress.update(3)
      >>> progress.done
      3
      >>> with Progress("squares", 4, "number") as progress:
      ...     list(map(progress.counting(lambda x: x * x), range(4)))
      [0, 1, 4, 9]
      >>> progress.done
      4
    """

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0) -> None:
        """Begin at `done` of `total`; `unit` is the singular of what is counted."""
        self._label, self._total, self._unit = label, total, unit
        hidden = None if is_primary() else True
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit=unit, disable=hidden
        )
        self.done = done
        """Units that are finished."""
        self._logs = self._bar.disable and not hidden
        self._began = self._said = time.monotonic()
        self._before = done

    def update(self, count: int = 1, **shown: str) -> None:
        """Count finished units, and show some values beside them."""
        self.done += count
        if shown and not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._logs and now - self._said >= SECONDS and self.done < self._total:
            self._said = now
            log.info("%s", self._line(now - self._began, shown))

    def counting(self, function: Function) -> Function:
        """The function; each call that returns finishes one unit."""

        @functools.wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            found = function(*arguments, **named)
            self.update()
            return found

        return cast(Function, counted)

    def _line(self, passed: float, shown: dict[str, str]) -> str:
        rate = (self.done - self._before) / passed
        left = (self._total - self.done) / rate if rate else float("inf")
        values = "".join(f", {name} {value}" for name, value in shown.items())
        return (
            f"{self._label}: {self.done:,} of {self._total:,} {self._unit}s, "
            f"{rate:.3g} {self._unit}s/s, {_duration(left)} left{values}"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def _duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 5 s` or `2 h 10 min`."""
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
