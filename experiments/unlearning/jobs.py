"""Jobs of the unlearning table: models, the choice of a setting, the reported runs."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.unlearning.setup import (
    CHOSEN,
    USEFUL,
    Settings,
    World,
    actual_rate,
    models_of,
    results_of,
    trials_of,
)
from lt_mia_jax.errors import Diverged
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.study.syntofu import train_model, write_data
from lt_mia_jax.verification.card import report_card
from lt_mia_jax.verification.storage import card_to_json

log = logging.getLogger("lt_mia_jax.unlearning_table")


def preference(card: dict[str, Any], retrained: dict[str, Any]) -> tuple[bool, float]:
    """What a setting is chosen by: as useful as the retrained model, and as ignorant.

    One that keeps `USEFUL` of the utility goes before all others. Ignorance is likeness
    of truth ratios, of the probability of answers and of the accuracy of their values,
    on questions that are not reported on: a p-value alone says little of two dozen.
    Utility is that of all utility questions.
    """

    def value(card: dict[str, Any], name: str) -> float:
        return card[name]["value"]

    kept = value(card, "model_utility") / value(retrained, "model_utility")
    apart = [card["forget_quality"]["distance"]]
    apart += [
        abs(value(card, name) - value(retrained, name))
        for name in ("forget_probability", "forget_slot_accuracy")
        if name in card  # TOFU's answers have no marked values
    ]
    return kept >= USEFUL, min(1.0, kept) * (1 - float(np.mean(apart)))


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in the file; made and written when there is none."""
    if not path.exists():
        try:
            write_json(path, make())
        except Diverged as error:
            # A result, and not tried again; any other mistake is.
            write_json(path, {"failed": str(error)})
    return read_json(path)


def compare(world: World, name: str, config: Settings) -> None:
    """Choose the setting of one method, and run it on every seed."""
    retrained = card_to_json(report_card(world.truth[True], world.truth[True]))
    folder, preferred = world.results / name, {}
    for trial in trials_of(config, name):
        setting = (name, trial, config.seeds[0])
        card = once(
            folder / "trials" / f"{trial.named(config.seeds[0])}.json",
            lambda setting=setting: world.card(world.attempt(*setting), True),
        )
        if "failed" not in card:
            preferred[trial] = preference(card, retrained)
    cards = []
    if preferred:
        best = max(preferred, key=lambda trial: preferred[trial])
        tuned = {**best._asdict(), "rate": actual_rate(name, best.rate)}
        for seed in config.seeds:
            setting = (name, best, seed)
            cards.append(f"{best.named(seed)}.json")
            once(
                folder / "runs" / cards[-1],
                lambda setting=setting: {
                    **world.card(world.attempt(*setting), False),
                    **tuned,
                },
            )
    else:
        log.warning("%s diverged with every setting; it has no row", name)
    write_json(folder / CHOSEN, {"tried": tried(config), "cards": cards})


def tried(config: Settings) -> dict[str, Any]:
    """What a choice depends on, beside the models."""
    return {
        "rates": list(config.rates),
        "epochs": list(config.epochs),
        "retain": list(config.retain),
        "seeds": list(config.seeds),
    }


def is_chosen(config: Settings, folder: Path) -> bool:
    """Whether a method's runs are there, of these and no other settings."""
    return (folder / CHOSEN).exists() and (
        read_json(folder / CHOSEN)["tried"] == tried(config)
    )


def make_data(config: Settings) -> None:
    """Job: the files, and what they are made with."""
    write_data(models_of(config))


def make_model(config: Settings, name: str) -> None:
    """Job: one model, unless it is there."""
    command = models_of(config)
    done = command.out / "models" / name / "finished.json"
    if not done.exists():
        train_model(command, name, command.devices.make())
        write_json(done, {})


@functools.lru_cache(maxsize=1)
def world_of(config: Settings, percent: int) -> World:
    """Opened once in each process."""
    return World(config, percent)


def judge_controls(config: Settings, percent: int) -> None:
    """Job: cards of the model that knows everything and of the retrained ones."""
    world = world_of(config, percent)
    for name, subject in {"full": world.full, **world.retrained}.items():
        once(
            world.results / name / "card.json",
            functools.partial(world.card, subject, False),
        )


def try_method(config: Settings, percent: int, name: str) -> None:
    """Job: one method on one size of the forget set."""
    if not is_chosen(config, results_of(config, percent) / name):
        compare(world_of(config, percent), name, config)
