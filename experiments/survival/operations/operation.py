"""A row of the table of operations."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.survival.ingredients import World
from experiments.survival.measure import Made


@dataclass(frozen=True)
class Operation:
    """Something that makes a model of experts."""

    name: str
    """Short; part of file names."""
    system: str
    """Where it is from, as tables show it."""
    about: str
    """What is done, in one line."""
    ingredients: str
    """Experts whose texts the model was made of: `a`, `b` or `ab`."""
    make: Callable[[World], Made]
