"""Estimates with intervals: what measuring hands to reporting.

JSON is `configs.to_dict(record, tagged=False)`; `configs.from_dict` reads it back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from lt_mia_jax.configs import Count


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TprEstimate:
    """True-positive rate at one false-positive rate, read in two ways."""

    conservative: Estimate
    """The largest TPR among thresholds whose FPR does not exceed the rate."""
    interpolated: Estimate
    """Linear between the neighboring points of the ROC curve."""
    refused: bool
    """Fewer than 10 false positives are expected, so that no value is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSummary:
    """How well one score separates members from non-members."""

    auc: Estimate
    tpr: Mapping[str, TprEstimate]
    """Rates by false-positive rate, which is written as in `0.05`."""
    n_members: Count
    """Members with a score."""
    n_nonmembers: Count
    n_missing: Count
    """Texts without a score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether texts and known non-members can be told apart without any model."""

    decision: Literal["alike", "doubtful", "different", "untested"]
    """`different`: a score may differ for reasons other than training, so nothing can
    be concluded from it. `untested`: too few texts to tell."""
    auc: Estimate = Estimate(None)
    """Of a classifier that sees words and text statistics."""
    statistic: str = ""
    """The text statistic in which the two sets differ most."""
    suspects: float | None = None
    """Its median over the texts."""
    nonmembers: float | None = None
    """Its median over the known non-members."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetVerdict:
    """Whether a set of texts as a whole was trained on."""

    p_value: float
    """Of "suspects do not score higher than non-members", over all seeds."""
    decision: Literal["member", "no evidence"]
    alpha: float
    n_suspect: Count
    """Suspects with a value in every score used."""
    n_nonmembers: Count
    method: str
    effect: Estimate
    """Cohen's d of held-out suspects against held-out non-members along the fitted
    direction (positive = towards membership), median over seeds."""
    seed_p_values: tuple[float, ...] = ()
    """The p-value of each seed, before they are combined."""
    scores_used: tuple[str, ...] = ()
