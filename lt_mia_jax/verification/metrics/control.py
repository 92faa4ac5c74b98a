"""Which settings of a method keep a risk below a level, with what confidence.

The risk is the mean of a loss in [0, 1] over texts, such as whether each can still be
extracted. p-values hold for texts that did not choose the settings.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import binom

from lt_mia_jax.arrays import Bool, Float
from lt_mia_jax.verification.metrics.checks import Values, number, per_item


def calibrated_risk(losses: Values) -> float:
    """Mean of losses in [0, 1] with one more text at 1, `(n R + 1) / (n + 1)`.

    Source: Conformal Risk Control, arXiv 2208.02814.
    """
    found = per_item("losses", losses, low=0.0, high=1.0)
    return float((found.sum() + 1) / (len(found) + 1))


def risk_p_value(losses: Values, level: float) -> float:
    """P of the hypothesis that the risk is above `level` (Hoeffding-Bentkus).

    `min(exp(-n h(R, level)), e P(Bin(n, level) <= ceil(n R)))` with the divergence
    `h(a, b) = a log(a / b) + (1 - a) log((1 - a) / (1 - b))` and `R <= level`; else 1.

    Losses are in [0, 1], `level` in (0, 1).

    Source: Learn then Test, arXiv 2110.01052, section 2; for unlearning FROC, arXiv
    2512.13337, whose own instantiation is not public.
    """
    found = per_item("losses", losses, low=0.0, high=1.0)
    level = number("level", level, low=1e-9, high=1 - 1e-9)
    count, risk = len(found), float(found.mean())
    a = min(risk, level)
    apart = sum(x * np.log(x / y) for x, y in ((a, level), (1 - a, 1 - level)) if x > 0)
    # Rounding must not lift a whole number of losses to the next one.
    total = np.ceil(round(float(found.sum()), 9))
    tail = np.e * binom.cdf(total, count, level)
    return float(min(np.exp(-count * apart), tail, 1.0))


def accepted(
    p_values: Sequence[float] | Float[np.ndarray, " n"],
    confidence: float = 0.95,
    *,
    rule: Literal["bonferroni", "sequence"] = "bonferroni",
) -> Bool[np.ndarray, " n"]:
    """Settings whose risk is below the level, all of them with this confidence.

    Args:
      p_values: of `risk_p_value`, one a setting.
      confidence: probability that no accepted setting is above the level.
      rule: "bonferroni" divides the error among all settings; "sequence" goes through
        them in their order, fixed in advance (such as from strong to weak forgetting),
        and ends at the first one that fails.
    """
    found, error = np.asarray(p_values, np.float64), 1 - confidence
    if rule == "bonferroni":
        return found <= error / max(len(found), 1)
    return np.logical_and.accumulate(found <= error)
