"""The tables and the figure of the survival study, from what is finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.survival.config import CORPORA, STRENGTHS
from experiments.survival.demonstration import SEEDS, Outcome, verdict
from experiments.survival.demos import DEMOS
from experiments.survival.jobs import demo_file, read_outcome, survival_file
from experiments.survival.measure import SCORES
from experiments.survival.operations import OPERATIONS
from experiments.transfer.figures import INK, new_axes
from lt_mia_jax.attacks.scores.table import describe
from lt_mia_jax.files import read_json

Found = dict[tuple[str, str], dict[str, Any]]
"""What was measured, by operation and strength."""

NOT_RUN = "–"


def found_in(out: Path) -> Found:
    """All operations that are finished."""
    return {
        (name, strength): read_json(path)
        for name in OPERATIONS
        for strength in STRENGTHS
        if (path := survival_file(out, name, strength)).exists()
    }


def outcomes_in(out: Path) -> dict[str, list[Outcome]]:
    """Seeds of the demonstrations of which all are finished."""
    files = {
        name: [demo_file(out, name, seed) for seed in range(SEEDS)] for name in DEMOS
    }
    return {
        name: [read_outcome(path) for path in paths]
        for name, paths in files.items()
        if all(path.exists() for path in paths)
    }


def auc(row: Mapping[str, Any], corpus: str, kind: str, score: str) -> str:
    """AUC with its interval."""
    found = row[corpus][kind][score]["auc"]
    if found["value"] is None:
        return NOT_RUN
    return (
        f"{_points(found['value'])} [{_points(found['low'])}, {_points(found['high'])}]"
    )


def quoted(
    found: Found, what: str, name: str, corpus: str, strength: str = "strong"
) -> str:
    """A number for the text, without its interval, which stands in the tables.

    `what` is the "auc" or "tpr" of the learned attack on members, or the "loss".
    """
    if (name, strength) not in found:
        return NOT_RUN
    row = found[name, strength][corpus]
    if what == "loss":
        return f"{row['loss']:.2f}"
    if what == "tpr":
        return tpr(found[name, strength], corpus, SCORES[0])
    return _points(row["members"][SCORES[0]]["auc"]["value"])


def tpr(row: Mapping[str, Any], corpus: str, score: str) -> str:
    """TPR at 5 % FPR, conservative."""
    found = row[corpus]["members"][score]["tpr"]["0.05"]["conservative"]["value"]
    return NOT_RUN if found is None else _points(found)


def _points(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def survival_table(found: Found, strength: str) -> str:
    """One strength: every attack on the members of each ingredient, and the losses."""
    rows = []
    for name, operation in OPERATIONS.items():
        row = found.get((name, strength))
        if row is None:
            continue
        for corpus in operation.ingredients or CORPORA:
            values = [auc(row, corpus, "members", score) for score in SCORES]
            values += [tpr(row, corpus, SCORES[0])]
            values += [auc(row, corpus, "controls", SCORES[0])]
            rows.append([name, corpus, *values, f"{row[corpus]['loss']:.2f}"])
    names = [describe(score).label for score in SCORES]
    header = ["operation", "members of", *names, f"{names[0]}, TPR at 5 %"]
    header += [f"{names[0]}, control", "loss"]
    return markdown(header, rows)


def strengths_table(found: Found) -> str:
    """AUC of the learned attack at all strengths."""
    rows = []
    for name, operation in OPERATIONS.items():
        for corpus in operation.ingredients or CORPORA:
            values = [
                auc(found[name, strength], corpus, "members", SCORES[0])
                if (name, strength) in found
                else NOT_RUN
                for strength in STRENGTHS
            ]
            if set(values) != {NOT_RUN}:
                rows.append([name, corpus, *values])
    return markdown(["operation", "members of", *STRENGTHS], rows)


def operations_table() -> str:
    """What each operation is, and where it is from."""
    rows = [[f"`{name}`", row.system, row.about] for name, row in OPERATIONS.items()]
    return markdown(["operation", "from", "what is done"], rows)


def controls(found: Found) -> dict[str, Any]:
    """How the learned attack does on texts that no model learned, over all models."""
    values, inside = [], 0
    for row in found.values():
        for corpus in set(CORPORA) & set(row):
            area = row[corpus]["controls"][SCORES[0]]["auc"]
            values.append(area["value"])
            inside += area["low"] <= 0.5 <= area["high"]
    return {
        "count": len(values),
        "inside": inside,
        "mean": float(np.mean(values)) if values else float("nan"),
        "low": float(np.min(values)) if values else float("nan"),
        "high": float(np.max(values)) if values else float("nan"),
    }


def demonstrations_table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Verdict, precondition and the numbers of every seed."""
    rows = []
    for name, found in outcomes.items():
        demo = DEMOS[name]
        valid = sum(outcome.precondition for outcome in found)
        passed = sum(outcome.passed and outcome.precondition for outcome in found)
        claim = demo.claim + (
            f" *If:* {demo.precondition}" if demo.precondition else ""
        )
        seeds = f"{passed} of {len(found)}"
        if valid < len(found):
            seeds += f" ({valid} with the precondition)"
        rows.append(
            [demo.system, claim, f"**{verdict(found)}**", seeds, _values(found)]
        )
    return markdown(["system", "claim", "verdict", "seeds", "median (each seed)"], rows)


def _values(found: Sequence[Outcome]) -> str:
    parts = []
    for name in found[0].measures:
        values = [outcome.measures[name] for outcome in found]
        seeds = ", ".join(f"{value:.3g}" for value in values)
        parts.append(f"{name.replace('_', ' ')} {np.median(values):.3g} ({seeds})")
    return "; ".join(parts)


def draw(found: Found, path: Path) -> None:
    """AUC of the learned attack on the members of each ingredient, by operation."""
    from matplotlib import pyplot as plt

    lines = [
        (name, corpus)
        for name, operation in OPERATIONS.items()
        for corpus in operation.ingredients or CORPORA
        if any((name, strength) in found for strength in STRENGTHS)
    ]
    figure, (axis,) = new_axes(1)
    figure.set_size_inches(7.6, 0.27 * len(lines) + 1.0)
    colors = dict(zip(STRENGTHS, ("#9ecae1", "#4292c6", "#08519c"), strict=True))
    for offset, (strength, color) in zip((0.22, 0, -0.22), colors.items(), strict=True):
        height = [
            (level, found[name, strength][corpus]["members"][SCORES[0]]["auc"])
            for level, (name, corpus) in enumerate(lines)
            if (name, strength) in found
        ]
        levels = [offset - level for level, _ in height]
        values = np.array([area["value"] for _, area in height])
        errors = [
            values - [area["low"] for _, area in height],
            [area["high"] for _, area in height] - values,
        ]
        axis.errorbar(
            values,
            levels,
            xerr=errors,
            fmt="o",
            color=color,
            label=strength,
            markersize=3,
            linewidth=1,
        )
    axis.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    labels = [f"{name}, members of {corpus}" for name, corpus in lines]
    axis.set_yticks([-level for level in range(len(lines))], labels, fontsize=7)
    axis.set_xlabel("AUC of the learned attack")
    axis.set_ylim(-len(lines) + 0.4, 0.6)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
