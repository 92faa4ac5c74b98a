"""Attacks on forgotten texts: ROC curves, losses, and leakage by topic."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, LEARNED, describe
from lt_mia_jax.report.drawing.histograms import Group, histogram_figure
from lt_mia_jax.report.drawing.roc import CURVES, roc_band, roc_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import Cell, Column, Row, Table
from lt_mia_jax.report.wording import bounds, unit
from lt_mia_jax.verification.records import UnlearningRun

MODELS = {"before": "second", "after": "lead", "retrained": "third"}
"""CSS class of each model's curves."""


def attack_figures(run: UnlearningRun) -> Iterator[Figure]:
    """ROC curves of the strongest attack, and a histogram of losses a model."""
    scores = run.verification.scores
    if not scores:
        return
    attack = LEARNED if LEARNED in scores["after"]["forget"] else "min_k"
    bands, key = {}, []
    # The order in which a ROC figure gives out the classes of `MODELS`.
    for name in sorted(scores, key=lambda name: CURVES.index(MODELS[name])):
        sides = (_finite(scores[name][side][attack]) for side in ("forget", "holdout"))
        bands[name] = roc_band(*sides)
        key.append((f"curve {MODELS[name]}", name))
    yield Figure(
        roc_figure(bands, len(scores["after"]["holdout"][attack])),
        [*key, ("chance", "chance")],
        f"ROC of {describe(attack, CARD_FRACTION).label}.",
        "Forgotten against unseen texts under each model. After good unlearning the "
        "curve is that of the retrained model; one far below the diagonal gives the "
        "forgotten texts away as well.",
        tall=True,
    )
    for name in MODELS:
        if name in scores:
            yield _losses(name, scores[name])


def _losses(name: str, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    groups = [
        Group("unseen texts", "nonmember", -_finite(scores["holdout"]["loss"])),
        Group("forgotten texts", "member", -_finite(scores["forget"]["loss"])),
    ]
    axis = f"mean loss per token {name}, nats"
    drawn, beyond = histogram_figure(groups, axis, means=True)
    more = f" The end bins also hold {beyond} more." if beyond else ""
    return Figure(
        drawn,
        [("outline member", "forgotten"), ("outline nonmember", "unseen")],
        f"Losses, {name}.",
        "Vertical lines are means." + more,
    )


def leakage_table(run: UnlearningRun, place: Place) -> Table:
    """Leakage of every attack on every topic; the largest has its interval."""
    after = run.verification.models["after"]
    found = {(each.group, each.attack): each for each in after.group_leakage}
    sizes = {each.group: each.n for each in after.group_leakage}
    attacks = list(dict.fromkeys(each.attack for each in after.group_leakage))
    names = {attack: describe(attack, CARD_FRACTION).label for attack in attacks}
    worst = after.worst_group
    largest = max(abs(each.value) for each in after.group_leakage) or 1.0

    def cell(group: str, attack: str) -> Cell:
        each = found.get((group, attack))
        if each is None:
            return Cell()
        known = worst and (worst.group, worst.attack) == (group, attack)
        shown, heat = unit(each.value), abs(each.value) / largest
        return Cell(each.value, shown, bounds(worst if known else None), heat=heat)

    return Table(
        place.id("leakage"),
        "AUC beyond the retrained model's, as a fraction of the latter: positive where "
        "the topic is still recognized, negative where it is over-forgotten. "
        + (
            f"The largest is that of {names[worst.attack]} on {worst.group}, with its "
            "interval; being chosen as the largest lifts it."
            if worst
            else ""
        ),
        [Column("Topic", kind="text"), *(Column(names[each]) for each in attacks)],
        [
            Row(group, [cell(group, each) for each in attacks], f"{n:,} texts")
            for group, n in sizes.items()
        ],
        css="heat",
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.array(values, float)
    return found[np.isfinite(found)]
