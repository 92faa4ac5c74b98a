"""Table and figure of the unlearning runs that are finished."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from unlearning_setup import Settings, results_of

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json

SHOWN = (
    "model_utility",
    "forget_probability",
    "forget_slot_accuracy",
    "forget_quality",
    "priv_leak",
    "auc_loss",
)


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
            files = sorted((folder / name).glob("seed*.json")) or sorted(
                (folder / name).glob("card.json")
            )
            cards = [read_json(path) for path in files]
            if good := [card for card in cards if "failed" not in card]:
                found[percent, name] = good
    if not found:
        raise InputError(f"{out}: no results yet; run without --markdown first")
    return found


def cell(cards: list[Any], name: str) -> str:
    """Mean over seeds, with the interval over items of the first one."""
    values = [card[name]["value"] for card in cards if name in card]
    if not values:
        return "-"
    if name == "forget_quality":
        logs = [card[name]["log10"] for card in cards]
        distance = np.mean([card[name]["distance"] for card in cards])
        return f"{np.mean(logs):.1f} (D {distance:.2f})"
    first = cards[0][name]
    digits = 0 if name == "priv_leak" else 2
    shown = f"{np.mean(values):.{digits}f}"
    return f"{shown} [{first['low']:.{digits}f}, {first['high']:.{digits}f}]"


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
            x = [card["model_utility"]["value"] for card in cards]
            y = [card["forget_quality"]["log10"] for card in cards]
            over = np.mean([card["priv_leak"]["value"] for card in cards]) > 25
            control = name == "full" or name.startswith("retrained")
            axis.scatter(
                x,
                y,
                marker="*" if control else "x" if over else "o",
                color="black" if control else "tab:red" if over else "tab:blue",
            )
            axis.annotate(
                name,
                (np.mean(x), np.mean(y)),
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )
        axis.axhline(math.log10(0.05), color="gray", linestyle=":")
        axis.set(
            xlabel="model utility",
            ylabel="log10 forget quality",
            title=f"{config.preset}, forget {percent} %; crosses: PrivLeak above 25 %",
        )
    figure.tight_layout()
    figure.savefig(path)
