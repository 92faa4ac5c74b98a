"""Is a model like the retrained one? A test of equivalence, which needs evidence.

That a test finds no difference is no evidence of equality: on four items it cannot find
one. Here equality is what has to be shown, within a margin, and few items show nothing.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student

from lt_mia_jax.verification.items import Items
from lt_mia_jax.verification.metrics.checks import PerItem, same_items
from lt_mia_jax.verification.records import (
    DIFFERENT,
    EQUIVALENT,
    TOO_FEW,
    Decision,
    Equivalence,
    Share,
)

MARGIN = 0.25
"""Largest difference that counts as none, as a fraction of what was learned."""
LEVEL = 0.05
"""Error of each of the two one-sided tests."""
FEWEST = 5
"""Of fewer items nothing is said, whatever their spread."""
_LEAST = 1e-30  # a truth ratio or probability of 0 has no logarithm


def quantities(items: Items) -> dict[str, PerItem]:
    """What is compared, per item and rising with knowledge; NaN where there is none.

    The probability of the answer sees what is left, its logarithm also what is less
    than a retrained model has.
    """
    with np.errstate(divide="ignore"):
        ratio = np.log(np.clip(items.truth_ratio, _LEAST, 1 / _LEAST))
    return {
        "probability": items.probability,
        "log_probability": np.log(np.maximum(items.probability, _LEAST)),
        "exact_memorization": items.exact_memorization,
        "truth_ratio": -ratio,
    }


def equivalence(
    original: Mapping[str, PerItem],
    unlearned: Mapping[str, PerItem],
    retrained: Mapping[str, PerItem],
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
) -> Equivalence:
    """Two one-sided tests (TOST) of each quantity, all of which must hold.

    The share that is left, `mean(unlearned - retrained) / mean(original - retrained)`,
    is 0 as after retraining and 1 as before unlearning. A model is equivalent where the
    interval of every quantity's share lies inside `[-margin, margin]`, different where
    that of one lies outside at `level` divided by their number (Bonferroni). Quantities
    that do not tell the original from the retrained model are left out, but for the
    first, without which nothing is said.

    Args:
      original: values of each item by quantity, before unlearning.
      unlearned: of the same items, after it.
      retrained: of the same items, under the model that never saw them.
      margin: in units of what was learned.
      level: of each test; intervals cover `1 - 2 level`.

    Source: Schuirmann, A comparison of the two one-sided tests procedure and the power
    approach, J. Pharmacokinet. Biopharm. 15 (1987); the interval of a ratio is
    Fieller's (1954); all quantities: Berger, Technometrics 24 (1982).
    """
    first, *_ = original
    sides: dict[str, list[PerItem]] = {}
    for name in original:
        values = [original[name], unlearned[name], retrained[name]]
        same_items(original=values[0], unlearned=values[1], retrained=values[2])
        known = np.isfinite(np.stack(values)).all(axis=0)
        sides[name] = [side[known] for side in values]
    found = {name: share_left(*values, level=level) for name, values in sides.items()}
    shares = {name: share for name, share in found.items() if share is not None}
    count = len(sides[first][0])
    decision: Decision = TOO_FEW
    if count >= FEWEST and first in shares:
        strict = level / len(shares)
        if all(_inside(share, margin) for share in shares.values()):
            decision = EQUIVALENT
        elif any(_beyond(share_left(*sides[n], level=strict), margin) for n in shares):
            decision = DIFFERENT
    return Equivalence(margin=margin, decision=decision, shares=shares, n=count)


def share_left(
    original: PerItem, unlearned: PerItem, retrained: PerItem, *, level: float = LEVEL
) -> Share | None:
    """What is left of one quantity, with an interval that covers `1 - 2 level`.

    Holds each share `r` that a t-test of `(unlearned - retrained) - r (original -
    retrained)` does not reject at `level` on either side. None where the original model
    is not above the retrained one, so that there is no scale.
    """
    n = len(original)
    if n < 2:
        return None
    left, learned = unlearned - retrained, original - retrained
    a, b = float(left.mean()), float(learned.mean())
    cover = np.cov(left, learned) / n
    t = float(student.ppf(1 - level, n - 1))
    # a^2 - 2 r a b + r^2 b^2 <= t^2 Var(a - r b), a quadratic in r.
    saa, sab, sbb = t**2 * cover[0, 0], t**2 * cover[0, 1], t**2 * cover[1, 1]
    square = b**2 - sbb
    if b <= 0 or square <= 0:
        return None
    middle = (a * b - sab) / square
    width = math.sqrt(max(0.0, middle**2 - (a**2 - saa) / square))
    return Share(a / b, float(middle - width), float(middle + width))


def _inside(share: Share, margin: float) -> bool:
    return -margin < share.low and share.high < margin


def _beyond(share: Share | None, margin: float) -> bool:
    return share is not None and (share.low > margin or share.high < -margin)
