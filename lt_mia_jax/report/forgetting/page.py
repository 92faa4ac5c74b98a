"""What the page of one unlearning run shows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, LEARNED, describe
from lt_mia_jax.report.drawing import plots
from lt_mia_jax.report.drawing.curves import roc_band
from lt_mia_jax.report.drawing.landscape import Figure, Line, curve_figure, map_figure
from lt_mia_jax.report.forgetting.cards import Card, Example
from lt_mia_jax.report.forgetting.findings import findings
from lt_mia_jax.report.forgetting.quantities import (
    KEPT,
    KNOWN,
    LEAKS,
    METRICS,
    MUSE,
    Metric,
    attacks_of,
    verdict,
)
from lt_mia_jax.report.forgetting.tables import (
    Cell,
    Row,
    Table,
    attack_metric,
    cell,
    metric_rows,
)
from lt_mia_jax.report.membership.checks import Check
from lt_mia_jax.report.membership.views import Tile
from lt_mia_jax.report.wording import signed

SHOWN = 100
"""Examples on the page."""
MODELS = {"before": "second", "after": "lead", "retrained": "third"}
"""CSS class of each model's curves."""


class RunView(NamedTuple):
    """Everything the template shows of one run."""

    document: Mapping[str, Any]
    verdict: list[str]
    checks: list[Check]
    tiles: list[Tile]
    tables: list[Table]
    topics: Table | None
    figures: list[Figure]
    models: list[str]
    examples: list[Example]
    total: int
    config: str


def view_document(document: Mapping[str, Any]) -> RunView:
    """The page of one run."""
    models = document["models"]
    names = [name for name in MODELS if name in models]
    every = [models[name] for name in names]
    examples = [
        Example(e["id"], e["topic"], e["question"], e["answer"], e["said"])
        for e in document["examples"]
    ]
    attacks = [
        (f"auc_{name}", attack_metric(f"auc_{name}")) for name in attacks_of(every)
    ]
    attacks += [
        (f"tpr_{name}", attack_metric(f"tpr_{name}"))
        for name in attacks_of(every)
        if any(not card[f"tpr_{name}"]["refused"] for card in every)
    ]
    parts = [
        (
            "what-is-left",
            "What is left of the forgotten texts. Good is what the retrained model "
            "has, not less; brackets are 95\u00a0% intervals over questions.",
            [(name, METRICS[name]) for name in ("forget_quality", *KNOWN)],
        ),
        (
            "what-is-kept",
            "What is left of everything else; more is better.",
            [(name, METRICS[name]) for name in KEPT],
        ),
        (
            "what-leaks",
            "What an attacker still sees: forgotten texts against texts that no model "
            "has seen. An AUC far from the retrained model's, on either side, leaks.",
            [*((name, METRICS[name]) for name in LEAKS), *attacks],
        ),
        (
            "muse",
            "The questions of MUSE: continuations, answers, leakage.",
            [(name, METRICS[name]) for name in MUSE],
        ),
    ]
    tables = [
        Table(
            anchor,
            caption,
            "Metric",
            [(name, "") for name in names],
            rows,
        )
        for anchor, caption, wanted in parts
        if (rows := metric_rows(wanted, every))
    ]
    tables += _utility_table(every, names)
    return RunView(
        document=document,
        verdict=verdict(document),
        checks=findings(document),
        tiles=list(_tiles(models)),
        tables=tables,
        topics=_topics(examples, names),
        figures=list(_figures(document)),
        models=names,
        examples=_remembered(examples, "after")[:SHOWN],
        total=len(examples),
        config=json.dumps(
            {name: document[name] for name in ("settings", "about", "config")},
            indent=2,
            ensure_ascii=False,
        ),
    )


def _utility_table(cards: Sequence[Card], names: Sequence[str]) -> Iterator[Table]:
    parts = [card.get("utility_parts", {}) for card in cards]
    wanted = [
        (name, Metric(name.replace("/", ", ").replace("_", " "), "", "high"))
        for name in dict.fromkeys(name for part in parts for name in part)
    ]
    if rows := metric_rows(wanted, parts):
        caption = "What model utility is the harmonic mean of."
        columns = [(name, "") for name in names]
        yield Table("parts-of-utility", caption, "Part", columns, rows)


def _tiles(models: Mapping[str, Card]) -> Iterator[Tile]:
    wanted = ["model_utility", "forget_quality", "priv_leak", "forget_probability"]
    if "model_utility" not in models["after"]:
        wanted[0] = "retain_probability"
    attacks = attacks_of([models["after"]])
    if attacks:
        wanted.append(f"auc_{LEARNED if LEARNED in attacks else attacks[0]}")
    for name in wanted:
        metric = METRICS.get(name) or attack_metric(name)
        own = cell(name, metric, [models["after"]])
        if own.value is None:
            continue
        others = [
            f"{label} {shown.text}"
            for key, label in (("before", "before"), ("retrained", "retrained"))
            if key in models
            and (shown := cell(name, metric, [models[key]])).value is not None
        ]
        label = "Forget quality, log10 p" if name == "forget_quality" else metric.label
        yield Tile(label, own.text, "; ".join(filter(None, [own.bounds, *others])))


def _topics(examples: Sequence[Example], names: Sequence[str]) -> Table | None:
    """Mean probability of the true answers by topic."""
    topics = sorted({e.topic for e in examples if e.topic is not None})
    if not 1 < len(topics) <= 60:
        return None
    rows = []
    for topic in topics:
        inside = [e for e in examples if e.topic == topic]
        cells = []
        for name in names:
            mean = float(np.mean([e.said[name]["probability"] for e in inside]))
            glyph = plots.interval_figure(mean, None, None, span=(0, 1), origin=0)
            cells.append(Cell(mean, f"{mean:.3f}", "", glyph))
        rows.append(Row(topic, f"{len(inside)} questions", cells))
    return Table(
        "topics",
        "Mean probability of the true answer by topic: forgetting is not even.",
        "Topic",
        [(name, "") for name in names],
        rows,
    )


def _remembered(examples: Sequence[Example], name: str) -> list[Example]:
    """What is remembered most comes first, against the retrained model if there is."""

    def excess(example: Example) -> float:
        gold = example.said.get("retrained")
        zero = gold["probability"] if gold else 0.0
        return example.said[name]["probability"] - zero

    return sorted(examples, key=excess, reverse=True)


def _figures(document: Mapping[str, Any]) -> Iterator[Figure]:
    yield from _attack_figures(document["scores"])
    for part, found in (document["layers"] or {}).items():
        yield _layer_figure(part, found)
    for part, clouds in (document["map"] or {}).items():
        yield _map_figure(part, clouds)
    curve = document["relearning"]
    if curve:
        steps = np.array(curve["steps"], float)
        lines = [
            Line(name, MODELS[name], np.log1p(steps), np.array(y, float))
            for name, y in curve["models"].items()
        ]
        area = curve["area"]
        yield Figure(
            curve_figure(
                lines,
                x_label="training steps",
                y_label="probability of the answer",
                ticks={float(np.log1p(n)): str(n) for n in curve["steps"]},
            ),
            [(f"curve {line.css}", line.name) for line in lines],
            "Relearning.",
            f"{curve['taught']} of the forgotten questions are taught again; these are "
            f"{curve['asked']} others."
            + ("" if area is None else f" The area between is {_shown(area)}.")
            + " A steeper curve than the retrained model's says that the knowledge was "
            "hidden and not gone.",
        )


def _shown(found: Mapping[str, float | None]) -> str:
    shown = signed(f"{found['value']:.3f}")
    if found["low"] is None:
        return shown
    ends = signed(f"{found['low']:.3f}, {found['high']:.3f}")
    return f"{shown} [{ends}]"


def _attack_figures(scores: Mapping[str, Any]) -> Iterator[Figure]:
    if not scores:
        return
    attacks = list(scores["after"]["forget"])
    attack = LEARNED if LEARNED in attacks else "min_k"
    label = describe(attack, CARD_FRACTION).label
    bands, key = {}, []
    # The order in which a ROC figure gives out the classes of `MODELS`.
    for name in sorted(scores, key=lambda name: plots.CURVES.index(MODELS[name])):
        sides = [np.array(scores[name][side][attack]) for side in ("forget", "holdout")]
        bands[name] = roc_band(*(side[np.isfinite(side)] for side in sides))
        key.append((f"curve {MODELS[name]}", name))
    count = len(scores["after"]["holdout"][attack])
    yield Figure(
        plots.roc_figure(bands, count),
        [*key, ("chance", "chance")],
        f"ROC of {label}.",
        "Forgotten against unseen texts under each model. After good unlearning the "
        "curve is that of the retrained model; one far below the diagonal gives the "
        "forgotten texts away as well.",
        tall=True,
    )
    for name in ("before", "after", "retrained"):
        if name not in scores:
            continue
        groups = [
            plots.Group("unseen texts", "nonmember", _loss(scores[name]["holdout"])),
            plots.Group("forgotten texts", "member", _loss(scores[name]["forget"])),
        ]
        figure, beyond = plots.histogram_figure(
            groups, f"mean loss per token {name}, nats", means=True
        )
        more = f" The end bins also hold {beyond} more." if beyond else ""
        yield Figure(
            figure,
            [("outline member", "forgotten"), ("outline nonmember", "unseen")],
            f"Losses, {name}.",
            "Vertical lines are means." + more,
        )


def _loss(scores: Mapping[str, Sequence[float]]) -> np.ndarray:
    values = -np.array(scores["loss"], float)
    return values[np.isfinite(values)]


def _layer_figure(part: str, found: Mapping[str, Any]) -> Figure:
    lines = [
        Line(name, MODELS[name], np.arange(len(y), dtype=float), np.array(y))
        for name, y in found["models"].items()
    ]
    count = len(lines[0].x)
    step = max(1, -(-count // 12))
    what = "forgotten" if part == "forget" else "kept"
    return Figure(
        curve_figure(
            lines,
            x_label="layers passed",
            y_label="linear CKA",
            ticks={n: str(n) for n in range(0, count, step)},
        ),
        [(f"curve {line.css}", line.name) for line in lines],
        f"Similarity to the retrained model, {what} texts.",
        f"Linear CKA of the streams at {found['tokens']:,} tokens that predict "
        "answers; 1 is the same up to rotation and scale.",
    )


def _map_figure(part: str, clouds: Mapping[str, Any]) -> Figure:
    shown = {
        name: (MODELS[name], np.array(clouds[name], float))
        for name in ("before", "retrained", "after")
        if name in clouds
    }
    what = "Forgotten" if part == "forget" else "Kept"
    return Figure(
        map_figure(shown),
        [(f"swatch {css}", name) for name, (css, _) in shown.items()],
        f"{what} texts in the plane.",
        "Two principal components of the last layer, one point a text and model. "
        "Distances in the plane leave out most of the space.",
    )
