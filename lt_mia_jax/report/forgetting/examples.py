"""Forgotten questions one by one and by topic: what is said, and what leaks."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, describe
from lt_mia_jax.report.drawing.intervals import interval_figure
from lt_mia_jax.report.forgetting.figures import MODELS
from lt_mia_jax.report.forgetting.runs import Group
from lt_mia_jax.report.fragments import show
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import Cell, Column, Row, Table, words
from lt_mia_jax.report.wording import bounds, count, unit
from lt_mia_jax.verification.records import Example, Said, UnlearningRun

SHOWN = 100
"""Examples on the page of one run."""
COMPARED = 40
"""Examples on a page that compares runs."""


def models_of(run: UnlearningRun) -> list[str]:
    """Names of the models of a run, in the order of tables."""
    return [name for name in MODELS if name in run.verification.models]


def examples(run: UnlearningRun, place: Place) -> Markup:
    """What each model says, the questions that are still known best first."""
    every, names = run.verification.examples, models_of(run)
    shown = sorted(every, key=_excess, reverse=True)[:SHOWN]
    rows = [
        Row(
            each.question or "(plain text)",
            [words(each.answer), *(_said(each.said[name]) for name in names)],
        )
        for each in shown
    ]
    table = Table(
        place.id("examples-caption"),
        "What each model says to the forgotten questions, decoded greedily. Headers "
        "sort by the probability of the true answer.",
        [
            Column("Question", kind="text"),
            Column("True answer", kind="text"),
            *(Column(name.capitalize()) for name in names),
        ],
        rows,
        css="texts examples",
    )
    gold = " (against the retrained model)" if "retrained" in names else ""
    number = f"{SHOWN} of" if len(every) > SHOWN else "All"
    text = (
        f"{number} {count(len(every))} questions, those that the model still knows "
        f"best first{gold}. Under each answer the probability of the true one."
    )
    return Markup("<p>{}</p>{}").format(text, show.table(table))


def _excess(example: Example) -> float:
    """Probability of the answer beyond the retrained model's, if there is one."""
    gold = example.said.get("retrained")
    return example.said["after"].probability - (gold.probability if gold else 0.0)


def _said(found: Said) -> Cell:
    text = Markup(
        '<span class="said">{}</span><span class="bounds">p {}</span>'
    ).format(found.answer or "(nothing)", unit(found.probability))
    return Cell(found.probability, text, css="words")


def topics(run: UnlearningRun) -> list[str]:
    """Topics of the questions, if there are several and not too many."""
    found = sorted({e.topic for e in run.verification.examples if e.topic is not None})
    return found if 1 < len(found) <= 60 else []


def topic_table(run: UnlearningRun, place: Place) -> Table:
    """Mean probability of the true answers by topic."""
    rows = []
    for topic in topics(run):
        inside = [e for e in run.verification.examples if e.topic == topic]
        cells = []
        for name in models_of(run):
            mean = float(np.mean([e.said[name].probability for e in inside]))
            glyph = interval_figure(mean, None, None, span=(0, 1), origin=0)
            cells.append(Cell(mean, f"{mean:.3f}", glyph=glyph, strong=True))
        rows.append(Row(topic, cells, f"{len(inside)} questions"))
    return Table(
        place.id("topics"),
        "Mean probability of the true answer by topic: forgetting is not even.",
        [Column("Topic", kind="text"), *map(Column, models_of(run))],
        rows,
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
            "interval; as the largest of all, it is biased away from 0."
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


def matrix(group: Group, place: Place) -> Markup:
    """Questions against methods, by the probability of the true answer."""
    every = group.examples
    known = [entry.name for entry in group.entries if entry.cards]
    names = [name for name in known if any(name in each.said for each in every)]
    table = Table(
        place.id("examples"),
        "Probability of the true answer; darker is better known.",
        [Column("Question and true answer", kind="text"), *map(Column, names)],
        [_line(each, names) for each in every[:COMPARED]],
        css="heat texts",
    )
    number = f"The first {COMPARED} of" if len(every) > COMPARED else "All"
    text = (
        f"{number} {count(len(every))} questions. Each number is the probability of "
        "the true answer under one model; open a question to read what the models say."
    )
    return Markup("<p>{}</p>{}").format(text, show.table(table))


def _line(example: Example, names: Sequence[str]) -> Row:
    said = [(name, example.said[name]) for name in names if name in example.said]
    told = [(name, found.answer or "(nothing)") for name, found in said]
    question = example.question or "(plain text)"
    cells = []
    for name in names:
        found = example.said.get(name)
        p = None if found is None else found.probability
        cells.append(Cell(p, unit(p, 2), heat=p))
    return Row(show.answers(question, example.answer, told), cells)
