"""The measures of a report card: what each is called, means, and when it is good.

A new measure is a field of `verification.records.Card` and one row here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.attacks.scores.table import CARD_FRACTION, LEARNED, SCORES, describe
from lt_mia_jax.report.forgetting.likeness import (
    QUANTITIES,
    Tag,
    leak_of,
    likeness,
)
from lt_mia_jax.report.tables import (
    TOO_FEW,
    Cell,
    Column,
    Row,
    Span,
    common_span,
    estimate_cell,
)
from lt_mia_jax.report.wording import NBSP, signed
from lt_mia_jax.verification.records import Card, ForgetQuality

REJECTED = 0.05
"""Forget quality below this tells a model from the retrained one. Above it nothing is
shown: few questions tell no models apart."""

Good = Literal["low", "high", "as retrained"]
LOW, HIGH, SAME = "low", "high", "as retrained"


class Metric(NamedTuple):
    """How one measure of a card is shown."""

    name: str
    """Of the field of `Card`, with dots inside records."""
    label: str
    meaning: str
    good: Good
    digits: int = 3
    origin: float = 0.0
    """What the drawn scale marks."""
    read: Callable[[Card], Estimate | None] | None = None
    """Where it stands on a card, if not in the field."""

    def of(self, card: Card) -> Estimate | ForgetQuality | None:
        """The measure on a card; None where it was not taken."""
        if self.read is not None:
            return self.read(card)
        found: Any = card
        for name in self.name.split("."):
            found = found and getattr(found, name)
        return found

    def intervals(self, cards: Sequence[Card]) -> list[Estimate]:
        """The measure on each card that has it."""
        found = [self.of(card) for card in cards]
        return [e for e in found if e and not isinstance(e, ForgetQuality)]

    def measured(self, card: Card) -> bool:
        """Whether the card has a value."""
        found = self.of(card)
        return found is not None and found.value is not None

    @property
    def column(self) -> Column:
        """The head of a column of it."""
        return Column(self.label, f"{self.meaning}; good: {self.good}")


def _rows(prefix: str, good: Good, **rows: tuple[Any, ...]) -> tuple[Metric, ...]:
    """Rows by field: label, meaning, and what differs from `good` and the defaults."""
    found = []
    for name, (label, meaning, *rest) in rows.items():
        others: list[Any] = rest or [good]
        found.append(Metric(prefix + name, label, meaning, *others))
    return tuple(found)


METRICS = {
    "left": _rows(
        "",
        SAME,
        forget_quality=(
            "Forget quality",
            "log10 p of the test that tells truth ratios from the retrained model's; D "
            "is their distance",
            HIGH,
            1,
        ),
        forget_probability=(
            "Forget probability",
            "geometric mean over the tokens of the true answer",
        ),
        forget_rouge=("Forget ROUGE-L", "recall of the greedy answer"),
        forget_truth_ratio=(
            "Truth ratio",
            "1 where truth and falsehood are equally likely",
        ),
        forget_slot_accuracy=("Slot accuracy", "the fact alone is the most likely"),
        forget_slot_log_rank=(
            "Slot log-rank",
            "logarithm of the rank of the fact; 0 is first",
        ),
        forget_extraction_strength=(
            "Extraction strength",
            "fraction of the answer reproduced from its remaining prefix",
            LOW,
        ),
        forget_knowledge_left=(
            "Knowledge left",
            "probability of true answers: 0 as retrained, 1 as before unlearning",
        ),
        forget_exact_memorization=(
            "Exact memorization",
            "fraction of tokens that are the most likely",
        ),
        forget_memo=("MEMO", "ROUGE-1 precision over many prefixes"),
        forget_fluency=(
            "Fluency",
            "entropy of word pairs and triples in answers, bits; low when repetitive",
        ),
        retrain_distance=(
            "Distance to retrained",
            "mean squared distance of next-token distributions on answers, 0 to 2",
            LOW,
        ),
    ),
    "kept": _rows(
        "",
        HIGH,
        model_utility=(
            "Model utility",
            "harmonic mean of nine numbers on what was to be kept",
        ),
        retain_probability=("Probability, kept", "of the answers that were to be kept"),
        retain_rouge=("ROUGE-L, kept", "recall of the kept answers"),
        retain_extraction_strength=("Extraction strength, kept", "of the kept answers"),
    ),
    "leaks": _rows(
        "",
        SAME,
        priv_leak=(
            "PrivLeak, %",
            "below 0 still recognized, above 0 less familiar than texts never seen",
            SAME,
            0,
        ),
        loss_gap_nats=("Loss gap, nats", "unseen minus forgotten texts, per token"),
        completeness=(
            "Completeness",
            "1 nothing of the fit is left, 0 as before (IAM)",
            HIGH,
        ),
        told_from_retrained=(
            "Told from retrained",
            "best threshold on the probability; 0 no attack works",
            LOW,
        ),
        trace_accuracy=(
            "Trace accuracy",
            "of a linear classifier that tells it from the model before; 0.5 is chance",
            SAME,
            3,
            0.5,
        ),
        worst_group=(
            "Worst-group leakage",
            "relative excess AUC on the topic where it is largest",
        ),
        risk=(
            "Extraction risk",
            "fraction of texts of which half can be extracted, as a controlled risk",
            LOW,
        ),
    ),
    "muse": _rows(
        "muse.",
        SAME,
        verbmem=("VerbMem", "ROUGE-L F1 of how a forgotten text is continued"),
        knowmem_forget=(
            "KnowMem, forgotten",
            "ROUGE-L F1 of answers about forgotten texts",
        ),
        knowmem_retain=(
            "KnowMem, kept",
            "ROUGE-L F1 of answers about kept texts: utility",
            HIGH,
        ),
        priv_leak=(
            "PrivLeak of MUSE's texts, %",
            "forgotten against held-out texts, beside the retrained model",
            SAME,
            0,
        ),
    ),
}
"""Every measure, by table: what is left, what is kept, what leaks, MUSE's own."""


def every_metric() -> list[Metric]:
    """The rows of all tables."""
    return [metric for rows in METRICS.values() for metric in rows]


def metric_of(name: str) -> Metric:
    """The row of a field of `Card`."""
    return next(metric for metric in every_metric() if metric.name == name)


def attacks_of(cards: Sequence[Card]) -> list[str]:
    """Names of the attacks that any card has, the learned one first."""
    found = dict.fromkeys(name for card in cards for name in card.attacks)
    order = [LEARNED, *(score.name for score in SCORES), *found]
    return sorted(found, key=order.index)


def attack_metric(attack: str, part: Literal["auc", "tpr"]) -> Metric:
    """How the AUC or the true-positive rate of an attack is shown."""
    label, meaning = describe(attack, CARD_FRACTION)
    title, origin = {"auc": ("AUC", 0.5), "tpr": (f"TPR at 1{NBSP}%", 0.0)}[part]

    def read(card: Card) -> Estimate | None:
        return getattr(card.attacks.get(attack), part, None)

    return Metric(part, f"{title} {label}", meaning, SAME, origin=origin, read=read)


def share_metrics(cards: Sequence[Card]) -> list[Metric]:
    """A row for each quantity of the test of equivalence."""

    def read(card: Card, name: str) -> Estimate | None:
        found = card.equivalence and card.equivalence.shares.get(name)
        return Estimate(found.value, found.low, found.high) if found else None

    return [
        Metric(name, label, "", SAME, read=partial(read, name=name))
        for name, label in QUANTITIES.items()
        if any(read(card, name) for card in cards)
    ]


def over_seeds(metric: Metric, cards: Sequence[Card]) -> Estimate:
    """The mean over cards, and the outermost ends of the intervals."""
    found = metric.intervals(cards)
    values = [each.value for each in found if each.value is not None]
    return Estimate(
        float(np.mean(values)) if values else None,
        min((each.low for each in found if each.low is not None), default=None),
        max((each.high for each in found if each.high is not None), default=None),
    )


def card_cell(metric: Metric, cards: Sequence[Card], span: Span | None = None) -> Cell:
    """A number with its interval; of several seeds the mean and the outermost ends."""
    tests = [card.forget_quality for card in cards if card.forget_quality]
    if metric.name == "forget_quality" and tests:
        return _quality_cell(tests)
    found = over_seeds(metric, cards)
    if found.value is None:
        refused = any(getattr(metric.of(card), "refused", False) for card in cards)
        return TOO_FEW if refused else Cell(strong=True)
    origin = min(max(metric.origin, span[0]), span[1]) if span else 0.0
    shown = estimate_cell(found, digits=metric.digits, span=span, origin=origin)
    if metric.name == "forget_knowledge_left":
        words, css = likeness([card.equivalence for card in cards])
        return shown._replace(tag=words, tag_css=css)
    if metric.name != "priv_leak":
        return shown
    leaks = {leak_of(card) for card in cards}
    leak = leaks.pop() if len(leaks) == 1 else Tag("differs by seed")
    return shown._replace(tag=leak.words, tag_css=leak.css)


def _quality_cell(found: Sequence[ForgetQuality]) -> Cell:
    log = float(np.mean([each.log10 for each in found]))
    distance = float(np.mean([each.distance for each in found]))
    floor = any(each.note for each in found)
    return Cell(
        log,
        signed(f"{log:.1f}"),
        f"D {distance:.2f}",
        strong=True,
        tag="floor" if floor else "",
        tag_css="leaks" if floor else "",
    )


def metric_rows(wanted: Sequence[Metric], cards: Sequence[Card]) -> list[Row]:
    """A row a metric, a column a card; metrics that no card has are left out."""
    return [
        Row(
            metric.label,
            [card_cell(metric, [card], _span(metric, cards)) for card in cards],
            metric.meaning,
        )
        for metric in wanted
        if any(metric.measured(card) for card in cards)
    ]


def _span(metric: Metric, cards: Sequence[Card]) -> Span:
    """A common scale for the glyphs of one metric."""
    low, high = common_span(metric.intervals(cards), 0.0)
    if low == 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)
