"""Exceptions that end a command with a message for the user; checks of ranges."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

LONGEST = 4000
"""Characters of a message."""

NAMED = 5
"""Items of a list that a message names."""


class InputError(ValueError):
    """Bad input from the user, explained in one line.

    The message names what was found, what was expected and how to mend it. The
    command line prints it to stderr and exits with code 2, without a traceback.

    Example:
      >>> from lt_mia_jax import FeatureLayout, InputError
      >>> try:
      ...     FeatureLayout(k=0)
      ... except InputError as error:
      ...     print(error)
      k is 0; the feature layout needs k >= 1
    """

    def __init__(self, message: str):
        line = " ".join(message.split())
        if len(line) > LONGEST:  # the beginning says what, the end how to mend it
            line = f"{line[: LONGEST - 500]} ... {line[-490:]}"
        super().__init__(line)


def capped(items: Iterable[Any], join: str | None = None) -> str:
    """The first five items and the number of the others; for lists in messages.

    Without `join` they are written as a list, otherwise one after the other.

    Example:
      >>> capped("abcdefg", ", "), capped(["a"]), capped([])
      ('a, b, c, d, e and 2 more', "['a']", '[]')
    """
    items = list(items)
    shown = items[:NAMED]
    text = str(shown) if join is None else join.join(map(str, shown))
    return text + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


class Diverged(InputError):
    """A run whose numbers are no longer finite, under settings that were asked for."""


class Unavailable(Exception):
    """Something outside of the run does not answer or is in use; worth another try.

    The command line prints it to stderr and exits with code 75, without a traceback.
    """


class Stopped(Exception):
    """A run was asked to stop, and its state is saved; no mistake.

    The command line prints it to stderr and exits with code 143, without a traceback.
    """

    def __init__(self, step: int, unit: str = "step"):
        super().__init__(
            f"stopped by SIGTERM after {unit} {step}; the same command continues"
        )
        self.step = step


class Range(NamedTuple):
    """Values that a number may have."""

    expected: str
    """Ends the sentence "expected ..."."""
    holds: Callable[[float], bool]
    """False for NaN."""


POSITIVE = Range("more than 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range("0 or more", lambda x: 0 <= x < math.inf)
AT_LEAST_1 = Range("at least 1", lambda x: 1 <= x < math.inf)
FRACTION = Range("more than 0, at most 1", lambda x: 0 < x <= 1)
BELOW_1 = Range("0 or more, below 1", lambda x: 0 <= x < 1)
UNIT = Range("0 to 1", lambda x: 0 <= x <= 1)
INSIDE_UNIT = Range("more than 0, below 1", lambda x: 0 < x < 1)


def between(least: int, most: int) -> Range:
    """The numbers from `least` to `most`."""
    return Range(f"{least} to {most}", lambda x: least <= x <= most)


SEED = between(0, 2**31 - 1)
"""What every generator takes, with what is added to it."""
COUNT = between(1, 10**6)
BATCH = between(1, 2**14)
LENGTH = between(2, 2**17)
"""Tokens of a text; one alone has no score."""
RANK = between(0, 2**13)
RESAMPLES = between(10, 10**6)
"""Fewer have no 95 % interval."""


def check_ranges(where: str, **values: tuple[float | int | None, Range]) -> None:
    """Refuse numbers outside their ranges, naming all of them; None is not checked.

    `where` opens the message: what the numbers belong to.
    """
    wrong = [
        f"{name} = {_shown(value)}, expected {allowed.expected}"
        for name, (value, allowed) in values.items()
        if value is not None and not allowed.holds(value)
    ]
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}")


def _shown(value: float | int) -> str:
    try:
        return f"{value:g}"
    except OverflowError:
        return "an integer of hundreds of digits"


def check_fields(where: str, config: Any, ranges: Mapping[str, Range]) -> None:
    """`check_ranges` of attributes of `config`."""
    fields = {name: (getattr(config, name), kind) for name, kind in ranges.items()}
    check_ranges(where, **fields)
