"""Tables of report cards: numbers with their intervals, rows, captions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, describe
from lt_mia_jax.report.drawing import plots
from lt_mia_jax.report.forgetting.cards import Card, Entry
from lt_mia_jax.report.forgetting.quantities import PASSED, Metric, leak_word, value_of
from lt_mia_jax.report.wording import signed


class Cell(NamedTuple):
    """One number of a table."""

    value: float | None
    text: str = "\N{EM DASH}"
    bounds: str = ""
    glyph: Markup = Markup("")
    word: str = ""
    css: str = ""


class Row(NamedTuple):
    """One line of a table: a metric of several models, or a model's metrics."""

    label: str
    definition: str
    cells: list[Cell]
    control: bool = False
    failed: str | None = None


class Table(NamedTuple):
    """A table with a caption."""

    id: str
    caption: str
    corner: str
    columns: list[tuple[str, str]]
    """Label and hint."""
    rows: list[Row]


def attack_metric(name: str) -> Metric:
    """How `auc_NAME` or `tpr_NAME` is shown."""
    kind, _, attack = name.partition("_")
    label, definition = describe(attack, CARD_FRACTION)
    what = "AUC" if kind == "auc" else "TPR at 1\u00a0%"
    return Metric(f"{what} {label}", definition, "retrained")


def metric_rows(
    wanted: Sequence[tuple[str, Metric]], cards: Sequence[Card]
) -> list[Row]:
    """A row a metric, a column a card; metrics that no card has are left out."""
    rows = []
    for name, metric in wanted:
        if not any(value_of(card, name) is not None for card in cards):
            continue
        span = _span(name, cards)
        cells = [cell(name, metric, [card], span) for card in cards]
        rows.append(Row(metric.label, metric.definition, cells))
    return rows


def method_table(
    anchor: str,
    caption: str,
    wanted: Sequence[tuple[str, Metric]],
    entries: Sequence[Entry],
) -> Table:
    """A row a method, a column a metric."""
    rows = [
        Row(
            entry.name,
            f"{len(entry.cards)} seeds" if len(entry.cards) > 1 else "",
            [cell(name, m, entry.cards) for name, m in wanted],
            entry.control,
            None if entry.cards else entry.failed or "no result",
        )
        for entry in entries
    ]
    return Table(
        anchor, caption, "Method", [(m.label, m.definition) for _, m in wanted], rows
    )


def cell(
    name: str,
    metric: Metric,
    cards: Sequence[Card],
    span: tuple[float, float] | None = None,
) -> Cell:
    """A number with its interval; of several seeds the mean and the outermost ends."""
    found = [card[name] for card in cards if value_of(card, name) is not None]
    if not found:
        refused = any((card.get(name) or {}).get("refused") for card in cards)
        return Cell(None, "too few") if refused else Cell(None)
    if name == "forget_quality":
        log = float(np.mean([each["log10"] for each in found]))
        distance = float(np.mean([each["distance"] for each in found]))
        floor = any(each["note"] for each in found)
        passes = all(each["log10"] >= np.log10(PASSED) for each in found)
        return Cell(
            log,
            signed(f"{log:.1f}"),
            f"D {distance:.2f}",
            word="floor" if floor else "passes" if passes else "",
            css="leaks" if floor else "even",
        )
    value = float(np.mean([each["value"] for each in found]))
    ends = [
        (each["low"], each["high"])
        for each in found
        if each.get("low") is not None and each.get("high") is not None
    ]
    digits = metric.digits
    bounds, low, high = "", None, None
    if ends:
        low, high = min(a for a, _ in ends), max(b for _, b in ends)
        bounds = signed(f"[{low:.{digits}f},\u00a0{high:.{digits}f}]")
    glyph = Markup("")
    if span is not None:
        origin = min(max(0.5 if name.startswith("auc_") else 0.0, span[0]), span[1])
        glyph = plots.interval_figure(value, low, high, span=span, origin=origin)
    word, css = leak_word(cards[0]) if name == "priv_leak" else ("", "")
    if name == "priv_leak" and len(cards) > 1:
        words = {leak_word(card) for card in cards}
        word, css = words.pop() if len(words) == 1 else ("differs by seed", "")
    return Cell(value, signed(f"{value:.{digits}f}"), bounds, glyph, word, css)


def _span(name: str, cards: Sequence[Card]) -> tuple[float, float] | None:
    """A common scale for the glyphs of one metric; None for numbers that need none."""
    if name == "forget_quality":
        return None
    seen = [
        card[name][end]
        for card in cards
        if value_of(card, name) is not None
        for end in ("value", "low", "high")
        if card[name].get(end) is not None
    ]
    if not seen:
        return None
    low, high = min(0.0, *seen), max(seen)
    high = max(high, 1.0) if 0 <= low and high <= 1 else high
    return (low, high) if high > low else (low - 0.5, high + 0.5)
