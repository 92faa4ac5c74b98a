"""Ranges of hyperparameters, as data that `Method` checks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lt_mia_jax.errors import InputError


class Limit(NamedTuple):
    """A range of numbers."""

    expected: str
    holds: Callable[[float], bool]
    """False for NaN."""


POSITIVE = Limit("more than 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limit("0 or more", lambda x: 0 <= x < math.inf)
AT_LEAST_1 = Limit("at least 1", lambda x: 1 <= x < math.inf)
SHARE = Limit("more than 0, at most 1", lambda x: 0 < x <= 1)
PERCENTILE = Limit("0 to 100", lambda x: 0 <= x <= 100)


def check_limits(method: Any) -> None:
    """Check a method's fields against the `limits` of its classes; None passes.

    Raises:
      InputError: names every field outside its range.
    """
    limits: dict[str, Limit] = {}
    for cls in reversed(type(method).__mro__):
        own: Mapping[str, Limit] = vars(cls).get("limits", {})
        limits |= own
    wrong = [
        f"{name} = {value:g}, expected {limit.expected}"
        for name, limit in limits.items()
        if (value := getattr(method, name)) is not None and not limit.holds(value)
    ]
    if wrong:
        raise InputError(f"{type(method).__name__}: {'; '.join(wrong)}")
