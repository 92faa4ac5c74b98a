"""Table and figure of the unlearning runs that are finished."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from unlearning_setup import CHOSEN, Settings, results_of

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json

INK = "#7a7a7a"  # legible on light and on dark pages
SHOWN = (
    "model_utility",
    "forget_probability",
    "forget_slot_accuracy",
    "forget_quality",
    "priv_leak",
    "auc_loss",
)
AXES = ("model_utility", "forget_quality")


def collect(config: Settings, out: Path) -> dict[tuple[int, str], list[Any]]:
    """Cards by percentage and method, one a seed."""
    found: dict[tuple[int, str], list[Any]] = {}
    for percent in config.percents:
        folder = results_of(dataclasses.replace(config, out=out), percent)
        names = [
            "full",
            *sorted(p.name for p in folder.glob("retrained*")),
            *config.methods,
        ]
        for name in names:
            files = [folder / name / "card.json"]  # of models that learned nothing more
            if (chosen := folder / name / CHOSEN).exists():
                names_of_runs = read_json(chosen)["cards"]
                files = [folder / name / "runs" / run for run in names_of_runs]
            cards = [read_json(path) for path in files if path.exists()]
            if good := [card for card in cards if "failed" not in card]:
                found[percent, name] = good
    if not found:
        raise InputError(f"{out}: no results yet; run without --markdown first")
    return found


def cell(cards: list[Any], name: str) -> str:
    """Mean over seeds, and an interval that holds those of all seeds over items."""
    own = [card[name] for card in cards if name in card]
    if not own:
        return "-"
    if name == "forget_quality":
        logs = np.mean([one["log10"] for one in own])
        distance = np.mean([one["distance"] for one in own])
        return f"{logs:.1f} (D {distance:.2f})"
    digits = 0 if name == "priv_leak" else 2
    mean = np.mean([one["value"] for one in own])
    low, high = min(one["low"] for one in own), max(one["high"] for one in own)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(config: Settings, out: Path) -> str:
    """Markdown."""
    found = collect(config, out)
    lines = [
        "| forget | method | seeds | utility | p(forget) | slot accuracy "
        "| log10 forget quality | PrivLeak, % | AUC loss | rate, epochs |",
        "| --- " * 10 + "|",
    ]
    for (percent, name), cards in found.items():
        cells = [cell(cards, column) for column in SHOWN]
        setting = (
            f"{cards[0]['rate']:g}, {cards[0]['epochs']}" if "rate" in cards[0] else ""
        )
        lines.append(
            f"| {percent} % | {name} | {len(cards)} | {' | '.join(cells)} | {setting} |"
        )
    return "\n".join(lines)


def draw(config: Settings, out: Path, path: Path) -> None:
    """Forget quality over model utility."""
    from matplotlib import pyplot as plt

    found = collect(config, out)
    percents = sorted({percent for percent, _ in found})
    figure, axes = plt.subplots(
        1, len(percents), figsize=(6 * len(percents), 5), squeeze=False
    )
    for axis, percent in zip(axes[0], percents, strict=True):
        for (own, name), cards in found.items():
            if own != percent:
                continue
            cards = [card for card in cards if {*AXES, "priv_leak"} <= card.keys()]
            if not cards:
                continue
            x = [card["model_utility"]["value"] for card in cards]
            y = [card["forget_quality"]["log10"] for card in cards]
            over = np.mean([card["priv_leak"]["value"] for card in cards]) > 25
            control = name == "full" or name.startswith("retrained")
            colour = INK if control else "tab:red" if over else "tab:blue"
            axis.scatter(x, y, marker=".", s=8, color=colour, alpha=0.6)
            axis.scatter(
                np.mean(x),
                np.mean(y),
                marker="*" if control else "x" if over else "o",
                color=colour,
            )
            axis.annotate(
                name,
                (np.mean(x), np.mean(y)),
                fontsize=7,
                color=INK,
                xytext=(3, 3),
                textcoords="offset points",
            )
        axis.axhline(math.log10(0.05), color="gray", linestyle=":")
        axis.set(
            xlabel="model utility",
            ylabel="log10 forget quality",
            title=f"{config.preset}, forget {percent} %; crosses: PrivLeak above 25 %",
        )
        for label in (axis.title, axis.xaxis.label, axis.yaxis.label):
            label.set_color(INK)
        axis.tick_params(colors=INK)
        for spine in axis.spines.values():
            spine.set_color(INK)
    figure.tight_layout()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, metadata=metadata)
