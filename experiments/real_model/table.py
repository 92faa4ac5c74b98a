"""Markdown tables of `real_model.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lt_mia_jax.attacks.scores.table import LEARNED, describe
from lt_mia_jax.audit.records import TEXT_ONLY

Estimate = Mapping[str, float | None]
Summary = Mapping[str, Any]

RATE = "0.01"
BASELINES = ("ratio", "ez", "wbc")
"""Always shown; of the other published scores the best one is."""


def table(found: Mapping[str, Any]) -> str:
    """Markdown: what each target gives away, as AUC and as TPR at 1 % FPR."""
    entries = found["combinations"]

    def auc(summary: Summary) -> Estimate:
        return summary["auc"]

    def tpr(summary: Summary) -> Estimate:
        return summary["tpr"][RATE]["conservative"]

    notes = (
        f"Corpora marked * also trained {_title(entries[0]['learned'][0])}, with other "
        "texts. The last score is the best by AUC of those without a column, chosen "
        "in each row; TPRs are conservative, '-' where non-members are too few."
    )
    return "\n\n".join(
        [
            f"Base: {found['model']}.",
            _grid("AUC", entries, auc),
            _grid("TPR at 1 % FPR", entries, tpr),
            notes,
        ]
    )


def _grid(
    title: str,
    entries: Sequence[Summary],
    figure: Callable[[Summary], Estimate],
) -> str:
    """One row a target; means over seeds where there are several."""
    shown = (*entries[0]["learned"], *BASELINES)
    columns = [_title(name) for name in shown]
    head = ["corpus", "tuning", "seed", "members + others", "loss gap, nats"]
    head += [*columns, "best other", "text-only baseline"]
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    groups: dict[tuple[str, str], list[Summary]] = {}
    for entry in entries:
        groups.setdefault((entry["corpus"], entry["tuning"]), []).append(entry)
    for (corpus, tuning), group in groups.items():
        mark = "" if group[0]["unseen"] else "*"
        for entry in group:
            counts, attacks = entry["counts"], entry["attacks"]
            others = [name for name in attacks if name not in shown]
            best = max(others, key=lambda name: attacks[name]["auc"]["value"] or 0.0)
            cells = [f"{corpus}{mark}", tuning, str(entry["seed"])]
            cells.append(f"{counts['members']} + {counts['nonmembers']}")
            cells.append(_interval(entry["loss_gap_nats"]))
            cells += [_interval(figure(attacks[name])) for name in shown]
            cells.append(f"{_title(best)} {_interval(figure(attacks[best]))}")
            baseline = entry["controls"].get(TEXT_ONLY)
            cells.append(_interval(figure(baseline) if baseline else None))
            lines.append(f"| {' | '.join(cells)} |")
        if len(group) > 1:
            gaps = _mean([entry["loss_gap_nats"] for entry in group])
            cells = [f"{corpus}{mark}", tuning, "mean", "", gaps]
            cells += [
                _mean([figure(entry["attacks"][name]) for entry in group])
                for name in shown
            ]
            lines.append(f"| {' | '.join([*cells, '', ''])} |")
    return "\n".join(lines)


def _title(name: str) -> str:
    learned, _, which = name.partition("/")
    if learned == LEARNED:
        return f"LT-MIA ({which})" if which else "LT-MIA"
    return describe(name).label


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    text = f"{estimate['value']:.3f}"
    if estimate["low"] is None or estimate["high"] is None:
        return text
    return f"{text} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _mean(estimates: Sequence[Estimate | None]) -> str:
    values = [found["value"] for found in estimates if found is not None]
    known = [value for value in values if value is not None]
    return f"**{np.mean(known):.3f}**" if known else "-"
