"""The report card as typed records; `storage` reads and writes them.

What was not measured is None, or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.configs import Count


@dataclass(frozen=True, kw_only=True)
class TprAtRate(Estimate):
    """True-positive rate of an attack at one false-positive rate."""

    value: float | None = None
    rate: float
    refused: bool
    """Too few unseen texts for the rate: no value."""
    n_holdout: Count = 0


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """How well an attack tells forgotten texts from texts that no model has seen."""

    auc: Estimate
    tpr: TprAtRate | None = None
    leak: Estimate | None = None
    """PrivLeak in percent, where there is a retrained model."""


@dataclass(frozen=True, kw_only=True)
class ForgetQuality:
    """The exact two-sample test of truth ratios against the retrained model."""

    value: float
    """p-value."""
    log10: float
    """Finite even where `value` is below the smallest float."""
    distance: float
    """The largest difference of the distribution functions: comparable between sets of
    different sizes, unlike p."""
    n: tuple[int, int]
    """Questions under the model and under the retrained one."""
    log10_floor: float | None = None
    """The smallest value that `log10` can take at these sizes."""
    note: str
    """A caution where the samples do not overlap, so that p measures nothing."""


EQUIVALENT, DIFFERENT, TOO_FEW = "equivalent", "different", "too few to tell"
Decision = Literal["equivalent", "different", "too few to tell"]


@dataclass(frozen=True)
class Share:
    """What is left, 0 as retrained and 1 as before unlearning, with its 90 % interval.

    90 %, so that either end is a one-sided test at 5 %.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Whether a model is like the retrained one on the forgotten questions."""

    decision: Decision
    margin: float
    """The largest share that counts as none."""
    shares: Mapping[str, Share]
    """By quantity."""
    n: Count
    """Questions with a value under all three models."""


@dataclass(frozen=True, kw_only=True)
class ToldFromRetrained(Estimate):
    """Score of the best threshold on the answers' probability, 0 = no attack works."""

    epsilon: float | None = None
    """None where it is infinite."""
    threshold: float
    fpr: float
    fnr: float


@dataclass(frozen=True, kw_only=True)
class TraceAccuracy(Estimate):
    """Accuracy of a linear classifier that tells a model from the one before.

    It sees the last layer's activation at the end of each text. 0.5 is chance.
    """

    p_value: float
    """Of a permutation test that exchanges the two models on texts."""
    n: Count
    """Texts."""


@dataclass(frozen=True, kw_only=True)
class GroupLeakage(Estimate):
    """`(AUC - AUC of the retrained model) / AUC of the retrained model` on one topic.

    0 as after retraining, positive still recognized, negative over-forgotten.
    """

    value: float
    attack: str
    group: str
    """The topic."""
    n: Count
    """Texts on it."""


@dataclass(frozen=True, kw_only=True)
class Risk(Estimate):
    """Fraction of forgotten texts that can be extracted, by conformal risk control.

    A text counts when at least half of its answer follows from the rest; one more text
    is added that counts fully.
    """

    level: float
    """Highest risk that is accepted."""
    p_value: float
    """Of the hypothesis that the risk is above `level`."""
    n: Count
    """Texts."""


@dataclass(frozen=True, kw_only=True)
class MuseCard:
    """The four numbers of MUSE and the attacks on its texts."""

    verbmem: Estimate
    knowmem_forget: Estimate
    knowmem_retain: Estimate
    priv_leak: Estimate | None = None
    attacks: Mapping[str, AttackResult] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """What was measured of one model; None where it was not."""

    n_forget: Count
    """Questions to forget."""
    n_retain: Count | None = None
    n_holdout: Count | None = None
    """Texts that no model has seen."""

    forget_probability: Estimate
    forget_rouge: Estimate | None = None
    forget_exact_memorization: Estimate | None = None
    """`forget_exact_memorisation` in the file."""
    forget_extraction_strength: Estimate | None = None
    forget_slot_accuracy: Estimate | None = None
    forget_slot_log_rank: Estimate | None = None
    forget_memo: Estimate | None = None
    forget_fluency: Estimate | None = None
    """Weighted entropy of word pairs and triples in the answers, in bits."""
    forget_truth_ratio: Estimate | None = None

    retain_probability: Estimate | None = None
    retain_rouge: Estimate | None = None
    retain_extraction_strength: Estimate | None = None
    utility_parts: Mapping[str, Estimate] = field(default_factory=dict)
    """The nine means behind model utility, as `retain/probability`."""
    model_utility: Estimate | None = None

    attacks: Mapping[str, AttackResult] = field(default_factory=dict)
    loss_gap_nats: Estimate | None = None

    forget_quality: ForgetQuality | None = None
    priv_leak: Estimate | None = None
    """That of Min-K% with 40 %, in percent, as in MUSE."""
    told_from_retrained: ToldFromRetrained | None = None
    completeness: Estimate | None = None
    completeness_gap: Mapping[str, Estimate] = field(default_factory=dict)
    """Quantiles over questions: `p05`, `p50`, `p95`."""
    forget_knowledge_left: Estimate | None = None
    equivalence: Equivalence | None = None
    """None without the retrained model, or without that before unlearning."""

    trace_accuracy: TraceAccuracy | None = None
    retrain_distance: Estimate | None = None
    """Of the next-token distributions on forgotten answers; the retrained model has its
    distance to one that learned in another order."""
    worst_group: GroupLeakage | None = None
    """The largest in size over attacks and topics."""
    group_leakage: tuple[GroupLeakage, ...] = ()
    """Every attack on every topic with enough texts."""
    risk: Risk | None = None

    muse: MuseCard | None = None
    notes: tuple[str, ...] = ()
    """Why something that was to be expected was not measured; empty within a run, which
    gathers them."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one model says to a forgotten question."""

    answer: str
    probability: float
    """Of the true answer."""
    rouge: float | None
    extraction: float | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A forgotten question and what each model says to it."""

    id: str
    topic: str | None
    question: str | None
    """None for plain text."""
    answer: str
    said: Mapping[str, Said]
    """By name of the model."""


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    """Linear CKA to the retrained model, one number a layer, by name of the model."""

    tokens: Count
    models: Mapping[str, tuple[float, ...]]


Grid = Literal["bitsandbytes", "channel"]
"""How weights are rounded: to FP4 in blocks or the weights of LLM.int8(), as
bitsandbytes does, or to whole numbers by output channel."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Models with their weights rounded alike."""

    bits: Count
    grid: Grid = "channel"
    """Earlier files know of no other one."""
    changed_codes: float
    """Fraction of the rounded weights that unlearning changed."""
    models: Mapping[str, Card]
    recovered: Estimate | None
    """Knowledge left under rounding: 1 as before unlearning, 0 as retrained."""


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """Probability of forgotten answers while others are taught."""

    steps: tuple[int, ...]
    taught: Count
    """Questions that are taught."""
    asked: Count
    """Other questions, whose answers are measured."""
    models: Mapping[str, tuple[float, ...]]
    area: Estimate | None
    robustness: Estimate | None


Scores = Mapping[str, tuple[float, ...]]
"""Membership scores of texts, by attack."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Everything that is known about one run of unlearning: did it forget?"""

    forget: str
    """Fingerprint of the questions; runs with the same one are compared."""
    models: Mapping[str, Card]
    """`before`, `after`, and `retrained` if there is one."""
    examples: tuple[Example, ...]
    scores: Mapping[str, Mapping[str, Scores]]
    """By model and side (`forget`, `holdout`), for curves and histograms."""
    layers: Mapping[str, LayerSimilarity] | None
    """By set: `forget`, `retain`."""
    map: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]] | None
    """Texts in the plane, by set and model."""
    rounded: tuple[Rounding, ...]
    relearning: Relearning | None
    notes: tuple[str, ...]
    """Why something that was to be expected was not measured."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of texts."""

    file: str
    rows: Count | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """How the model was made, as in `unlearning.json`; older files have less of it."""

    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    forget: Source | None = None
    retain: Source | None = None
    steps: Count | None = None
    intervention: str | None = None
    method_file: str | None = None
    sharpness: float | None = None
    fisher_share: float | None = None
    sampled_tokens: Count | None = None
    """Tokens of the answers that the method sampled in training."""


@dataclass(frozen=True, kw_only=True)
class UnlearningRun:
    """The content of `card.json`."""

    title: str
    method: str
    settings: Mapping[str, Any]
    """Of the method."""
    verification: Verification
    about: About
    config: Mapping[str, Any]
    """Flags of the evaluation."""
    versions: Mapping[str, str]
    command: str
