"""What `summary.json` holds, as typed records.

They are written by `configs.to_dict(record, tagged=False)` and read back by
`configs.read_record`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lt_mia_jax.attacks.estimate import (
    AttackSummary,
    Comparison,
    DatasetVerdict,
    Estimate,
)
from lt_mia_jax.configs import Count

NO_REFERENCE = "none"
"""Name of the reference where there was none."""
TEXT_ONLY, PERMUTATION = "blind", "permutation"
"""Keys of the controls in files: text-only baseline and permuted labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of texts of a combination."""

    texts: Count
    members: Count | None
    """None when labels are unknown."""
    nonmembers: Count | None
    flagged: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinationSummary:
    """What the scores of one combination say, with controls when it is labeled."""

    name: str
    target: str
    reference: str
    corpus: str
    unseen: bool | None
    """Whether the learned attack saw neither this model variant nor this corpus."""
    counts: Counts
    loss_gap_nats: Estimate | None
    """Mean loss per token of non-members minus that of members."""
    attacks: Mapping[str, AttackSummary]
    """Figures by score; empty without labels, or with fewer than 2 texts of a class."""
    controls: Mapping[str, AttackSummary]
    """`blind` is the text-only baseline, `permutation` the primary score against
    permuted labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Conformal p-values, and a check on half of the non-members."""

    primary: str
    n_calibration: Count
    p_values: tuple[float, ...]
    """P-values of the texts that have a score."""
    nonmember_p_values: tuple[float, ...]
    """P-values of a random half of the non-members against the other half; they are
    uniform if the calibration is sound."""
    ks_p: float | None
    """P-value of the Kolmogorov-Smirnov test that these are uniform."""


class Judged(NamedTuple):
    """Texts against known non-members; None where nothing may be concluded."""

    comparison: Comparison | None = None
    """Of the two sets of texts without any model."""
    lower: float | None = None
    """P-value of "the texts do not score lower than non-members", which training on
    them cannot cause."""
    p_values: Float[np.ndarray, " N"] | None = None
    q_values: Float[np.ndarray, " N"] | None = None
    dataset: DatasetVerdict | None = None
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """`summary.json`, from which the report page is made."""

    kind: str
    title: str
    verdict: tuple[str, ...]
    primary: str
    """The score on which the verdict rests."""
    combinations: tuple[CombinationSummary, ...]
    dataset: DatasetVerdict | None
    calibration: Calibration | None
    comparison: Comparison | None = None
    """Of texts and known non-members, without any model."""
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    command: str
    notes: tuple[str, ...]
    scores_sha256: str | None = None
    """Of `scores.jsonl`, which belongs to this summary; None in older files."""
