"""Figures of the transfer study: ROC curves, AUC against loss gap, scaling."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.transfer.architectures import FAMILY_NAMES, Family
from experiments.transfer.tables import FIRST, LEARNED, score_name
from lt_mia_jax.attacks.metrics import roc

if TYPE_CHECKING:
    from experiments.transfer.report import Report

INK = "#7a7a7a"  # legible on light and on dark pages
COLORS: dict[Family, str] = {
    "transformer": "#4c78a8",
    "mamba": "#f58518",
    "rwkv": "#54a24b",
    "griffin": "#b279a2",
}


def draw(report: "Report", docs: Path) -> dict[str, str]:
    """Write the figures; their file names and titles."""
    found = {
        "transfer-roc.svg": (_rocs, "ROC curves on unseen families and corpora"),
        "transfer-gap.svg": (_gaps, "AUC against loss gap"),
        "transfer-scaling.svg": (_scaling, "AUC against diversity and volume"),
    }
    docs.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, (function, title) in found.items():
        if function(report, docs / name):
            drawn[name] = title
    return drawn


def new_axes(count: int, **size: Any) -> tuple[Any, Any]:
    """A figure with axes in a row, in colors for light and dark pages."""
    from matplotlib import pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "lt-mia"
    figure, axes = plt.subplots(
        1, count, figsize=(4.2 * count, 3.8), squeeze=False, **size
    )
    for axis in axes[0]:
        axis.tick_params(colors=INK)
        for spine in axis.spines.values():
            spine.set_color(INK)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.title.set_color(INK)
        axis.grid(color=INK, alpha=0.2, linewidth=0.6)
    return figure, axes[0]


def _save(figure: Any, path: Path, report: "Report") -> bool:
    """With the command and the texts that it comes from, in its own last line."""
    from matplotlib import pyplot as plt

    origin = f"{report.values['command']}; texts {report.values['fingerprint']}"
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.text(0.01, 0.015, origin, fontsize=5.5, color=INK)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, metadata=metadata)
    plt.close(figure)
    return True


def _rocs(report: "Report", path: Path) -> bool:
    shown = report.found.families
    figure, axes = new_axes(len(shown), sharey=True)
    lines = {LEARNED: "-", "ez": "--", "ratio": ":", "loss": "-."}
    for axis, (family, part) in zip(axes, shown.items(), strict=True):
        labels = np.concatenate([j.labels for j in part])
        for name, style in lines.items():
            scores = np.concatenate([j.scores[name] for j in part])
            curve = roc(labels, scores)
            # Two hundred points instead of every threshold: a tenth of the file.
            rates = np.geomspace(1e-3, 1, 200)
            reached = curve.tpr[np.searchsorted(curve.fpr, rates, side="right") - 1]
            axis.plot(
                rates,
                np.maximum(reached, 1e-4),
                style,
                color=COLORS[family] if name == LEARNED else INK,
                linewidth=1.8 if name == LEARNED else 1.1,
                label=score_name(name),
            )
        axis.plot([1e-4, 1], [1e-4, 1], color=INK, alpha=0.4, linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1.1))
        axis.set_xlabel("false-positive rate")
        axis.set_title(FAMILY_NAMES[family], fontsize=10)
        axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    axes[0].set_ylabel("true-positive rate, pooled")
    return _save(figure, path, report)


def _gaps(report: "Report", path: Path) -> bool:
    figure, axes = new_axes(2, sharey=True)
    entries = report.values["combinations"]
    for axis, name in zip(axes, (LEARNED, "ez"), strict=True):
        for family, color in COLORS.items():
            part = [entry for entry in entries if entry["family"] == family]
            if part:
                axis.scatter(
                    [entry["loss_gap_nats"] for entry in part],
                    [entry["auc"][name] for entry in part],
                    color=color,
                    s=18,
                    label=FAMILY_NAMES[family],
                )
        axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axis.set_xlabel("loss gap, nats a token")
        axis.set_title(score_name(name), fontsize=10)
    axes[0].set_ylabel("AUC of one combination")
    axes[0].legend(  # above the line at 0.5
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        loc="lower right",
        bbox_to_anchor=(1, 0.08),
    )
    return _save(figure, path, report)


def _scaling(report: "Report", path: Path) -> bool:
    means = report.values["means"]
    found: dict[str, dict[int, list[float]]] = {"diversity": {}, "volume": {}}
    for key, value in means.items():
        group, name = key.split("/", 1)
        study, *rest = name.split("-")
        if group == FIRST and study in found:
            found[study].setdefault(int(rest[0]), []).append(value["auc"]["value"])
    if not any(found.values()):
        return False
    labels = {
        "diversity": "combinations, fixed number of texts",
        "volume": "training texts of each combination",
    }
    figure, axes = new_axes(2, sharey=True)
    for axis, (study, points) in zip(axes, found.items(), strict=True):
        xs = sorted(points)
        axis.plot(xs, [np.mean(points[x]) for x in xs], color="#4c78a8", marker="o")
        for x in xs:
            axis.scatter([x] * len(points[x]), points[x], color=INK, s=8)
        if xs:
            axis.set_xscale("log", base=2)
            axis.set_xticks(xs, [str(x) for x in xs])
        axis.set_xlabel(labels[study])
    axes[0].set_ylabel("mean AUC, unseen families and corpora")
    return _save(figure, path, report)
