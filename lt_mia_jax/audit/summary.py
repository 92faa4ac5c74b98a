"""`summary.json`, what audits and evaluations say of a run, as typed records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lt_mia_jax.attacks.estimate import AttackSummary, Estimate

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Texts of a combination; None where membership is unknown."""

    texts: int
    members: int | None
    nonmembers: int | None
    flagged: int


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One target and reference model on one corpus."""

    name: str
    target: str
    reference: str
    corpus: str
    unseen: bool | None
    """Whether the learned attack was trained on neither this model nor this corpus."""
    counts: Counts
    loss_gap_nats: Estimate | None
    """Mean loss of non-members minus that of members, a token."""
    attacks: Mapping[str, AttackSummary]
    """By score; empty without labels."""
    controls: Mapping[str, AttackSummary]
    """`blind`, the text-only baseline, and `permutation`, shuffled labels."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The verdict on the texts as a whole."""

    p_value: float | None
    decision: str
    """`member` or `no evidence`."""
    alpha: float
    n_suspect: int
    n_nonmembers: int
    method: str
    effect: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Conformal p-values of the texts, and of one half of the non-members."""

    primary: str
    n_calibration: int
    p_values: tuple[float, ...]
    nonmember_p_values: tuple[float, ...]
    ks_p: float | None
    """Kolmogorov-Smirnov p-value of `nonmember_p_values` against uniform."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The whole file."""

    kind: str
    title: str
    verdict: tuple[str, ...]
    """Sentences, the most important first."""
    primary: str
    """The score of the verdict."""
    combinations: tuple[Combination, ...]
    dataset: Dataset | None
    calibration: Calibration | None
    fingerprints: Mapping[str, Any]
    versions: Mapping[str, Any]
    config: Mapping[str, Any]
    command: str
    notes: tuple[str, ...]
