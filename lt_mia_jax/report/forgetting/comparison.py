"""The page that compares unlearning runs."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report.drawing.pareto import DEEPEST, Spot, pareto_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.forgetting.examples import matrix
from lt_mia_jax.report.forgetting.figures import layer_tables
from lt_mia_jax.report.forgetting.likeness import leak_of
from lt_mia_jax.report.forgetting.metrics import (
    REJECTED,
    Metric,
    attack_metric,
    attacks_of,
    card_cell,
    every_metric,
    metric_of,
    over_seeds,
)
from lt_mia_jax.report.forgetting.runs import Entry, Group
from lt_mia_jax.report.fragments import asset, show
from lt_mia_jax.report.panels import Page, Panel, Place, article
from lt_mia_jax.report.tables import Cell, Column, Row, Table
from lt_mia_jax.report.wording import MINUS, NBSP, percent, plural
from lt_mia_jax.verification.card import accepted_runs
from lt_mia_jax.verification.records import Card

_KEY = [
    ("spot even", "PrivLeak as retrained"),
    ("spot over", "over-forgotten"),
    ("spot leaks", "still recognized"),
    ("spot plain", "undecided or not attacked"),
    ("spot control", "to compare with"),
]


def leak_kind(cards: Sequence[Card]) -> str:
    """CSS class of what the PrivLeak of all seeds says; "plain" where they disagree."""
    found = {leak_of(card).css for card in cards}
    return (found.pop() if len(found) == 1 else "") or "plain"


def _utility(group: Group) -> Metric:
    measured = any(card.model_utility for card in group.cards)
    return metric_of("model_utility" if measured else "retain_probability")


def pareto(group: Group) -> Figure | None:
    """Forgetting against utility; None with fewer than two results."""
    across = _utility(group)
    tested = any(card.forget_quality for card in group.cards)
    spots = []
    for entry in group.entries:
        cards = [c for c in entry.cards if across.measured(c)]
        cards = [c for c in cards if c.forget_quality or not tested]
        if cards:
            reach = over_seeds(across, cards)
            heights = [_height(card, tested) for card in cards]
            kind = "control" if entry.control else leak_kind(cards)
            place = float(reach.value or 0.0), float(np.mean(heights))
            spots.append(Spot(entry.name, kind, *place, reach.low, reach.high))
    if len(spots) < 2:
        return None
    cut = any(spot.y < DEEPEST for spot in spots)
    drawn = pareto_figure(
        spots,
        x_label=across.label.lower().replace(", kept", " of kept answers"),
        y_label="forget quality, log10 p"
        if tested
        else f"1 {MINUS} forget probability",
        passing=float(np.log10(REJECTED)) if tested else None,
    )
    caption = [
        "Up and to the right is better; the line joins the methods that no other one "
        "beats in both.",
        f"Below the dotted line (p = {REJECTED:g}) truth ratios tell the model from "
        "the retrained one; above it the test finds no difference, which is no "
        "evidence that there is none."
        if tested
        else "",
        "Values under the lower edge are drawn on it." if cut else "",
        f"Horizontal bars are 95{NBSP}% intervals.",
    ]
    title = "Forgetting against utility."
    return Figure(drawn, _KEY, title, " ".join(filter(None, caption)))


def _height(card: Card, tested: bool) -> float:
    if tested and card.forget_quality:
        return card.forget_quality.log10
    return 1 - (card.forget_probability.value or 0.0)


def _first(group: Group) -> list[Metric]:
    """The measures by which methods are compared."""
    names = (
        "forget_knowledge_left",
        "forget_quality",
        "priv_leak",
        "forget_probability",
        "forget_slot_accuracy",
        "risk",
    )
    return [_utility(group), *map(metric_of, names)]


def _controlled(group: Group) -> set[str]:
    """Methods whose extraction risk is below its level in every seed."""
    methods = [entry for entry in group.entries if not entry.control]
    passed = iter(accepted_runs([card for entry in methods for card in entry.cards]))
    return {e.name for e in methods if all([next(passed) for _ in e.cards])}


def _cell(metric: Metric, entry: Entry, controlled: set[str]) -> Cell:
    found = card_cell(metric, entry.cards)
    if metric.name != "risk" or entry.name not in controlled:
        return found
    level = max(card.risk.level for card in entry.cards if card.risk)
    return found._replace(tag=f"below {percent(level)}", tag_css="even")


def _table(group: Group, anchor: str, caption: str, wanted: Sequence[Metric]) -> Markup:
    """A row a method, a column a measure that any card has."""
    metrics = [m for m in wanted if any(m.measured(card) for card in group.cards)]
    controlled = _controlled(group)
    rows = [
        Row(
            entry.name,
            [_cell(metric, entry, controlled) for metric in metrics if entry.cards],
            f"{len(entry.cards)} seeds" if len(entry.cards) > 1 else "",
            control=entry.control,
            failed=entry.failed,
        )
        for entry in group.entries
    ]
    columns = [Column("Method", kind="text"), *(m.column for m in metrics)]
    return show.table(Table(anchor, caption, columns, rows))


def _methods(group: Group, place: Place) -> Markup:
    seeds = any(len(entry.cards) > 1 for entry in group.entries)
    caption = (
        "Each method, and below the line the models to compare with. Knowledge left "
        "says whether a model is as the retrained one, by a test of equivalence; "
        "PrivLeak stands beside every forget quality because either alone misleads. "
        "Brackets are "
        f"95{NBSP}% intervals over questions"
        + (
            "; numbers are means over seeds, and brackets enclose the intervals of all "
            "seeds."
            if seeds
            else ", not over seeds of training."
        )
    )
    if any(card.risk for card in group.cards):
        caption += (
            " Extraction risks marked as below a level are so for all marked methods "
            f"together with 95{NBSP}% confidence (Bonferroni over methods and seeds)."
        )
    return _table(group, place.id("methods"), caption, _first(group))


def _attacks(group: Group, place: Place) -> Markup:
    caption = (
        "AUC of each attack at telling forgotten from unseen texts. Good is what the "
        "retrained model has."
    )
    metrics = [attack_metric(name, "auc") for name in attacks_of(group.cards)]
    return _table(group, place.id("attacks"), caption, metrics)


def _further(group: Group) -> list[Metric]:
    rest = [m for m in every_metric() if m not in _first(group)]
    return [m for m in rest if any(m.measured(card) for card in group.cards)]


def _others(group: Group, place: Place) -> Markup:
    title = "The other metrics"
    found = _table(group, place.id("further"), f"{title}.", _further(group))
    return show.folded(title, found) if attacks_of(group.cards) else found


def _layers(group: Group, place: Place) -> Markup:
    tables = layer_tables(group.layers, place)
    return Markup("\n").join(show.table(each) for each in tables)


def _landscape(group: Group, _: Place) -> Markup:
    return Markup('<div class="wide">{}</div>').format(show.figure(pareto(group), True))


PANELS: tuple[Panel[Group], ...] = (
    Panel("Landscape", _landscape, lambda g: pareto(g) is not None, headed=False),
    Panel("Methods", _methods, headed=False),
    Panel("Attacks", _attacks, lambda g: bool(attacks_of(g.cards)), headed=False),
    Panel("Other metrics", _others, lambda g: bool(_further(g)), headed=False),
    Panel("Layer by layer", _layers, lambda group: bool(group.layers)),
    Panel("Example by example", matrix, lambda group: bool(group.examples)),
)


def comparison_page(groups: Sequence[Group]) -> Page:
    """A section for each group of runs."""
    methods = {e.name for group in groups for e in group.entries if not e.control}
    articles = [
        article(PANELS, group, Place(f"group-{number}", 3), group.title)
        for number, group in enumerate(groups, start=1)
    ]
    return Page(
        "LT-MIA unlearning comparison",
        f"Unlearning: {plural(len(methods), 'method')} compared",
        articles,
        [(each.anchor, each.title) for each in articles],
        asset("forgetting/reading.html"),
    )
