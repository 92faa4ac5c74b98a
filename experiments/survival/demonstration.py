"""What a demonstration is, and how five seeds become a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["pass", "inconclusive", "fail"]

SEEDS = 5
NEEDED = 4
"""Seeds on which the pass line must hold."""


class Outcome(NamedTuple):
    """One seed of a demonstration."""

    measures: Mapping[str, float]
    """What the pass line compares, by name; shown in the table whatever comes out."""
    passed: bool
    """Whether the pass line holds."""
    precondition: bool = True
    """Whether there was anything to show: without it the seed counts for nothing."""


@dataclass(frozen=True)
class Demonstration:
    """A system on the toy zoo, with a claim that may fail."""

    system: str
    """Its name in the literature."""
    claim: str
    """The pass line, in one sentence."""
    run: Callable[[int], Outcome]
    """From a seed to what happened; below a minute on one core."""
    precondition: str = ""
    """What must hold before the claim means anything; empty: nothing."""


def verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """`pass` on at least 4 of 5 seeds; `inconclusive` where preconditions decide.

    A seed without its precondition never counts as passed. When so many seeds lack it
    that the others could not reach the number needed, the verdict is `inconclusive`.
    """
    allowed = len(outcomes) - -(-len(outcomes) * NEEDED // SEEDS)
    valid = [outcome for outcome in outcomes if outcome.precondition]
    if sum(not outcome.passed for outcome in valid) > allowed:
        return "fail"
    if len(outcomes) - len(valid) > allowed:
        return "inconclusive"
    passed = sum(outcome.passed for outcome in valid)
    return "pass" if len(outcomes) - passed <= allowed else "fail"
