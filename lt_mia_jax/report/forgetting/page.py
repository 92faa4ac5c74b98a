"""The page of one unlearning run.

A new panel is one function and one row of `PANELS`.
"""

import json
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from lt_mia_jax.configs import to_dict
from lt_mia_jax.report.forgetting.examples import (
    examples,
    leakage_table,
    models_of,
    topic_table,
    topics,
)
from lt_mia_jax.report.forgetting.figures import figures
from lt_mia_jax.report.forgetting.findings import findings
from lt_mia_jax.report.forgetting.metrics import (
    METRICS,
    Metric,
    attack_metric,
    attacks_of,
    card_cell,
    metric_of,
    metric_rows,
    share_metrics,
)
from lt_mia_jax.report.forgetting.verdict import verdict
from lt_mia_jax.report.fragments import asset, show
from lt_mia_jax.report.panels import Page, Panel, Place, Tile, article, contents
from lt_mia_jax.report.tables import Column, Table
from lt_mia_jax.report.wording import NBSP
from lt_mia_jax.verification.metrics.equivalence import MARGIN
from lt_mia_jax.verification.records import Card, UnlearningRun

_CAPTIONS = {
    "what-is-left": "What is left of the forgotten texts. Good is what the retrained "
    f"model has, not less; brackets are 95{NBSP}% intervals over questions.",
    "like-retrained": "What is left of what was learned, 0 as retrained and 1 as "
    f"before; brackets are 90{NBSP}% intervals. A model is as retrained where all of "
    f"them lie within {MARGIN:g} of 0.",
    "what-is-kept": "What is left of everything else; more is better.",
    "what-leaks": "What an attacker still sees: forgotten texts against texts that no "
    "model has seen. An AUC far from the retrained model's, on either side, leaks.",
    "muse": "The questions of MUSE: continuations, answers, leakage.",
    "parts-of-utility": "What model utility is the harmonic mean of.",
}
"""Of the tables of numbers."""


def _tiles(run: UnlearningRun) -> Iterator[Tile]:
    models = run.verification.models
    after = models["after"]
    first = "model_utility" if after.model_utility else "retain_probability"
    names = (first, "forget_quality", "priv_leak", "forget_probability")
    wanted = [metric_of(name) for name in names]
    attacks = attacks_of([after])
    if attacks:
        wanted.append(attack_metric(attacks[0], "auc"))
    for metric in wanted:
        own = card_cell(metric, [after])
        if own.value is None:
            continue
        others = [
            f"{name} {card_cell(metric, [models[name]]).text}"
            for name in ("before", "retrained")
            if name in models and metric.measured(models[name])
        ]
        unit = ", log10 p" if metric.name == "forget_quality" else ""
        detail = "; ".join(filter(None, [own.bounds, *others]))
        yield Tile(metric.label + unit, own.text, detail)


def _numbers(run: UnlearningRun, place: Place) -> Markup:
    names = models_of(run)
    cards = [run.verification.models[name] for name in names]
    attacks = [
        attack_metric(name, part)
        for part in ("auc", "tpr")
        for name in attacks_of(cards)
    ]
    parts: dict[str, Sequence[Metric]] = {
        "what-is-left": METRICS["left"],
        "like-retrained": share_metrics(cards),
        "what-is-kept": METRICS["kept"],
        "what-leaks": [*METRICS["leaks"], *attacks],
        "muse": METRICS["muse"],
        "parts-of-utility": _utility_parts(cards),
    }
    tables = []
    for anchor, metrics in parts.items():
        corner = {"parts-of-utility": "Part", "like-retrained": "Share left"}.get(
            anchor, "Metric"
        )
        columns = [Column(corner, kind="text"), *map(Column, names)]
        if rows := metric_rows(metrics, cards):
            table = Table(place.id(anchor), _CAPTIONS[anchor], columns, rows)
            tables.append(show.table(table))
    return Markup("\n").join(tables)


def _utility_parts(cards: Sequence[Card]) -> list[Metric]:
    names = dict.fromkeys(name for card in cards for name in card.utility_parts)
    return [
        Metric(
            name,
            name.replace("/", ", ").replace("_", " "),
            "",
            "high",
            read=lambda card, name=name: card.utility_parts.get(name),
        )
        for name in names
    ]


def _drawable(run: UnlearningRun) -> bool:
    found = run.verification
    return any((found.scores, found.layers, found.map, found.relearning))


def _record(run: UnlearningRun, _: Place) -> Markup:
    about = {k: x for k, x in to_dict(run.about, tagged=False).items() if x}
    settings = {"settings": run.settings, "about": about, "config": run.config}
    config = json.dumps(settings, indent=2, ensure_ascii=False)
    return show.record(run.command, (), {"Versions": run.versions}, config)


PANELS: tuple[Panel[UnlearningRun], ...] = (
    Panel(
        "Verdict",
        lambda run, _: show.verdict(verdict(run)),
        name="Verdict",
        headed=False,
    ),
    Panel("Headline", lambda run, _: show.tiles([*_tiles(run)]), headed=False),
    Panel(
        "What speaks for and against it", lambda run, _: show.findings(findings(run))
    ),
    Panel("Numbers", _numbers, name="Numbers"),
    Panel(
        "By topic",
        lambda run, place: show.folded("By topic", show.table(topic_table(run, place))),
        lambda run: bool(topics(run)),
        headed=False,
    ),
    Panel(
        "Leakage by topic",
        lambda run, place: show.table(leakage_table(run, place)),
        lambda run: bool(run.verification.models["after"].group_leakage),
    ),
    Panel("Figures", lambda run, _: show.figures(figures(run)), _drawable, "Figures"),
    Panel("Example by example", examples, name="Examples"),
    Panel("Record of the run", _record, name="Record"),
)


def forgetting_page(run: UnlearningRun) -> Page:
    """The page of one run."""
    only = article(PANELS, run, Place())
    reading = asset("forgetting/reading.html")
    return Page("LT-MIA unlearning report", run.title, [only], contents(only), reading)
