"""What a card says of a model beside the retrained one, in a few words.

Success is worded from intervals that lie inside a margin, never from a test that found
no difference.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.verification.metrics.equivalence import FEWEST
from lt_mia_jax.verification.records import (
    DIFFERENT,
    EQUIVALENT,
    TOO_FEW,
    Card,
    Equivalence,
    Share,
)

FAR = 25.0
"""PrivLeak beyond this, in percent, is not what retraining gives."""
QUANTITIES = {
    "probability": "probability of the true answers",
    "log_probability": "log-probability of the true answers",
    "exact_memorization": "exact memorization",
    "truth_ratio": "truth ratio",
}
"""What a model is compared with the retrained one by."""


class Tag(NamedTuple):
    """What is said of a model, in a few words, and its CSS class."""

    words: str = ""
    css: str = ""


def leak_of(card: Card) -> Tag:
    """What PrivLeak says of a model.

    The words follow the interval: one that reaches into the band around 0 makes them
    careful, and they have no class. So does a missing one, and one of a few texts.
    """
    found = card.priv_leak
    if found is None or found.value is None:
        return Tag()
    low, high = ends(found)
    if found.low is None or 0 < card.n_forget < FEWEST:
        low, high = -math.inf, math.inf  # as good as no interval
    if low > FAR:
        return Tag("over-forgotten", "over")
    if high < -FAR:
        return Tag("still recognized", "leaks")
    if low >= -FAR and high <= FAR:
        return Tag("as retrained", "even")
    if abs(found.value) <= FAR:
        return Tag("undecided")
    return Tag("rather over-forgotten" if found.value > 0 else "rather recognized")


def likeness(found: Sequence[Equivalence | None]) -> Tag:
    """What the tests of equivalence of all seeds say, in a few words.

    As retrained only where every seed is; different where any is.
    """
    tested = [each for each in found if each is not None]
    if not tested or len(tested) < len(found):
        return Tag()
    if all(each.decision == EQUIVALENT for each in tested):
        return Tag("as retrained", "even")
    for each in tested:
        if each.decision == DIFFERENT:
            over = all(share.value < 0 for share in outside(each).values())
            return Tag("not as retrained", "over" if over else "leaks")
    return Tag(TOO_FEW)


def outside(found: Equivalence) -> dict[str, Share]:
    """Quantities whose whole interval lies beyond the margin."""
    return {
        name: share
        for name, share in found.shares.items()
        if share.low > found.margin or share.high < -found.margin
    }


def ends(found: Estimate) -> tuple[float, float]:
    """Ends of an interval; both are the value where there is none."""
    assert found.value is not None
    low, high = found.low, found.high
    return found.value if low is None else low, found.value if high is None else high
