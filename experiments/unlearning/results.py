"""Table of the unlearning runs that are finished, and what its page shows."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.setup import CHOSEN, USEFUL, Settings, results_of
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json
from lt_mia_jax.verification.records import EQUIVALENT

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
    retrained = {
        percent: cards[0]
        for (percent, name), cards in reversed(found.items())  # the first one stays
        if name.startswith("retrained")
    }
    lines = [
        "| forget | method | as retrained and useful | utility | p(forget) "
        "| slot accuracy | log10 forget quality | PrivLeak, % | AUC loss "
        "| rate, epochs, retain |",
        "| --- " * 10 + "|",
    ]
    for (percent, name), cards in found.items():
        cells = [cell(cards, column) for column in SHOWN]
        setting, first = "", cards[0]
        if "rate" in first:
            setting = f"{first['rate']:g}, {first['epochs']}, x {first['retain']:g}"
        good = sum(succeeds(card, retrained[percent]) for card in cards)
        lines.append(
            f"| {percent} % | {name} | {good} of {len(cards)} | {' | '.join(cells)} "
            f"| {setting} |"
        )
    return "\n".join(lines)


def succeeds(card: dict[str, Any], retrained: dict[str, Any]) -> bool:
    """Whether the model is equivalent to the retrained one, and as useful.

    Cards of earlier versions have no test of equivalence, and never succeed.
    """
    kept = card["model_utility"]["value"] / retrained["model_utility"]["value"]
    alike = card.get("equivalence", {}).get("decision") == EQUIVALENT
    return alike and kept >= USEFUL


def sections(config: Settings, out: Path) -> dict[str, dict[str, list[Any]]]:
    """Cards by title and method, as the comparison page wants them."""
    found = collect(config, out)
    return {
        f"{config.preset}, forget {percent} %": {
            name: cards for (own, name), cards in found.items() if own == percent
        }
        for percent in config.percents
        if any(own == percent for own, _ in found)
    }
