"""What the page that compares unlearning runs shows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.report.drawing.landscape import DEEPEST, Figure, Spot, pareto_figure
from lt_mia_jax.report.forgetting.cards import Card, Entry, Example, Group
from lt_mia_jax.report.forgetting.quantities import (
    METRICS,
    PASSED,
    attacks_of,
    leak_word,
)
from lt_mia_jax.report.forgetting.tables import (
    Cell,
    Row,
    Table,
    attack_metric,
    cell,
    method_table,
)

COMPARED = 40
"""Examples on the page."""


class GroupView(NamedTuple):
    """Everything the template shows of one group of runs."""

    anchor: str
    title: str
    tables: list[Table]
    pareto: Figure | None
    heat: list[Table]
    names: list[str]
    examples: list[Example]
    total: int


def view_group(group: Group, index: int) -> GroupView:
    """One section of the page that compares runs."""
    anchor = f"group-{index + 1}"
    entries = sorted(group.entries, key=lambda entry: entry.control)
    cards = [card for entry in entries for card in entry.cards]
    attacks = attacks_of(cards)
    first = ["model_utility", "forget_quality", "priv_leak"]
    if not any("model_utility" in card for card in cards):
        first[:1] = ["retain_probability"]
    first += ["forget_probability", "forget_slot_accuracy"]
    rest = [name for name in METRICS if name not in first]
    parts = [
        (
            "methods",
            "Each method, and below the line the models to compare with. PrivLeak "
            "stands beside every forget quality because either alone misleads. "
            "Brackets are 95\u00a0% intervals over questions"
            + (
                "; numbers are means over seeds, and brackets enclose the intervals "
                "of all seeds."
                if any(len(entry.cards) > 1 for entry in entries)
                else ", not over seeds of training."
            ),
            [(name, METRICS[name]) for name in first],
        ),
        (
            "attacks",
            "AUC of each attack at telling forgotten from unseen texts. Good is what "
            "the retrained model has.",
            [(f"auc_{name}", attack_metric(f"auc_{name}")) for name in attacks],
        ),
        (
            "further",
            "The other metrics.",
            [(name, METRICS[name]) for name in rest],
        ),
    ]
    tables = []
    for name, caption, wanted in parts:
        found = [(key, m) for key, m in wanted if any(key in card for card in cards)]
        if found:
            tables.append(method_table(f"{anchor}-{name}", caption, found, entries))
    names = [entry.name for entry in entries if entry.cards]
    examples = list(group.examples)
    return GroupView(
        anchor=anchor,
        title=group.title,
        tables=tables,
        pareto=_pareto(entries),
        heat=list(_heat(group, anchor)),
        names=[name for name in names if any(name in e.said for e in examples)],
        examples=examples[:COMPARED],
        total=len(examples),
    )


def leak_kind(cards: Sequence[Card]) -> str:
    """CSS class of what the PrivLeak of all seeds says; "plain" where they disagree."""
    words = {leak_word(card)[1] for card in cards}
    return (words.pop() if len(words) == 1 else "") or "plain"


def _pareto(entries: Sequence[Entry]) -> Figure | None:
    cards = [card for entry in entries for card in entry.cards]
    tested = any("forget_quality" in card for card in cards)
    useful = any("model_utility" in card for card in cards)
    across = "model_utility" if useful else "retain_probability"
    spots = []
    for entry in entries:
        wanted = {across, "forget_quality" if tested else "forget_probability"}
        found = [card for card in entry.cards if wanted <= card.keys()]
        if not found:
            continue
        mean = cell(across, METRICS[across], found)
        if tested:
            heights = [c["forget_quality"]["log10"] for c in found]
        else:
            heights = [1 - c["forget_probability"]["value"] for c in found]
        kind = "control" if entry.control else leak_kind(found)
        ends = [
            v
            for c in found
            for v in (c[across].get("low"), c[across].get("high"))
            if v is not None
        ]
        assert mean.value is not None
        spots.append(
            Spot(
                entry.name,
                kind,
                mean.value,
                float(np.mean(heights)),
                min(ends, default=None),
                max(ends, default=None),
            )
        )
    if len(spots) < 2:
        return None
    y_label = (
        "forget quality, log10 p" if tested else "1 \N{MINUS SIGN} forget probability"
    )
    cut = any(spot.y < DEEPEST for spot in spots)
    return Figure(
        pareto_figure(
            spots,
            x_label=METRICS[across].label.lower().replace(", kept", " of kept answers"),
            y_label=y_label,
            passing=float(np.log10(PASSED)) if tested else None,
        ),
        [
            ("spot even", "PrivLeak as retrained"),
            ("spot over", "over-forgotten"),
            ("spot leaks", "still recognized"),
            ("spot plain", "undecided or not attacked"),
            ("spot control", "to compare with"),
        ],
        "Forgetting against utility.",
        "Up and to the right is better; the line joins the methods that no other one "
        "beats in both. "
        + (
            f"Above the dotted line (p = {PASSED:g}) truth ratios could be those of "
            "the retrained model. "
            if tested
            else ""
        )
        + ("Values under the lower edge are drawn on it. " if cut else "")
        + "Horizontal bars are 95\u00a0% intervals.",
    )


def _heat(group: Group, anchor: str) -> Iterator[Table]:
    """Similarity to the retrained model, a row a method and a column a layer."""
    for part, rows in group.layers.items():
        what = "forgotten" if part == "forget" else "kept"
        every = [value for row in rows.values() for value in row]
        low = min(every)
        yield Table(
            f"{anchor}-layers-{part}",
            f"Linear CKA to the retrained model on {what} texts, by layers passed. "
            f"Darker is less similar, from 1 to {low:.3f}.",
            "Method",
            [(str(layer), "") for layer in range(len(next(iter(rows.values()))))],
            [
                Row(
                    name,
                    "",
                    [
                        Cell(v, f"{v:.3f}", css=f"{(1 - v) / max(1 - low, 1e-9):.2f}")
                        for v in row
                    ],
                    name == "before",
                )
                for name, row in rows.items()
            ],
        )
