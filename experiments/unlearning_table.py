"""Every unlearning method on SynTOFU: what it forgets, what it keeps, what leaks.

python experiments/unlearning_table.py --out runs/unlearning --percents 10

For each method the same grid of learning rates and epochs is tried on one seed, and one
trial is chosen by a validation part of the forget set that is not reported on; that
setting then runs on every seed. Each run is a file: a stopped command goes on where it
was, and --launcher spreads the methods. --markdown DIR prints the table and --plot-only
DIR draws the figure of what is there, both without running anything. The whole command
ends with OUT/comparison.html.
"""

import dataclasses
import functools
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from launch import Job, LauncherFlags, run_jobs
from unlearning_results import collect, draw, table
from unlearning_setup import Settings, World, models_of, results_of

from lt_mia_jax.cli import BAD_INPUT, keep_freed_memory, use_all_cores
from lt_mia_jax.commands import syntofu
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.report import write_comparison
from lt_mia_jax.unlearning.evaluate import (
    report_card,
)


@dataclasses.dataclass(frozen=True)
class UnlearningTable(Settings):
    """Run methods and print their report cards side by side."""

    launcher: Annotated[LauncherFlags, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LauncherFlags
    )
    """How the jobs run."""

    markdown: Path | None = None
    """Print the table of the results in this folder."""

    plot_only: Path | None = None
    """Draw the figure of the results in this folder."""

    figure: Path = Path("docs/unlearning.svg")
    """Where --plot-only draws."""


def preference(card: dict[str, Any], retrained: dict[str, Any]) -> float:
    """What a setting is chosen by: as useful as the retrained model, and as ignorant.

    Ignorance is likeness of truth ratios, of the probability of answers and of the
    accuracy of their values: a p-value alone says little on two dozen questions.
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
    return min(1.0, kept) * (1 - float(np.mean(apart)))


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in the file; made and written when there is none."""
    if not path.exists():
        try:
            write_json(path, make())
        except InputError as error:
            # A diverged run is a result, and is not tried again.
            write_json(path, {"failed": str(error)})
    return read_json(path)


def compare(world: World, name: str, config: Settings) -> None:
    """Choose the setting of one method, and run it on every seed."""
    retrained = report_card(world.truth[True], world.truth[True])
    folder, preferred = world.results / name, {}
    for rate, epochs in itertools.product(config.rates, config.epochs):
        setting = (name, rate, epochs, config.seeds[0])
        card = once(
            folder / f"trial-{rate:g}-{epochs}.json",
            lambda setting=setting: world.card(world.attempt(*setting), True),
        )
        if "failed" not in card:
            preferred[rate, epochs] = preference(card, retrained)
    if not preferred:
        return
    rate, epochs = max(preferred, key=lambda setting: preferred[setting])
    for seed in config.seeds:
        setting = (name, rate, epochs, seed)
        once(
            folder / f"seed{seed}.json",
            lambda setting=setting: {
                **world.card(world.attempt(*setting), False),
                "rate": setting[1],
                "epochs": setting[2],
            },
        )


def make_data(config: Settings) -> None:
    """Job: the files, and what they are made with."""
    syntofu.write_data(models_of(config))


def make_model(config: Settings, name: str) -> None:
    """Job: one model, unless it is there."""
    command = models_of(config)
    done = command.out / "models" / name / "finished.json"
    if not done.exists():
        syntofu.train_model(command, name, command.devices.make())
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
    folder = results_of(config, percent) / name
    if not all((folder / f"seed{seed}.json").exists() for seed in config.seeds):
        compare(world_of(config, percent), name, config)


def _model_jobs(settings: Settings) -> list[Job]:
    kept = {f"retain{100 - percent:02d}" for percent in settings.percents}
    names = [
        name
        for name in syntofu.model_names(models_of(settings))
        if name.partition("-")[0] in {"base", "full", *kept}
    ]
    found = [Job(name="data", function=make_data, arguments=(settings,))]
    return found + [
        Job(
            name=f"model/{name}",
            function=make_model,
            arguments=(settings, name),
            needs=("data",) if name == "base" else ("model/base",),
        )
        for name in names
    ]


def jobs(config: UnlearningTable) -> list[Job]:
    """Models first, then everything else in any order."""
    settings = Settings(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)}
    )
    found, models = [], ()
    if config.preset == "syntofu":
        found = _model_jobs(settings)
        models = tuple(job.name for job in found)
    for percent in config.percents:
        found.append(
            Job(
                name=f"{percent}/controls",
                function=judge_controls,
                arguments=(settings, percent),
                needs=models,
            )
        )
        found += [
            Job(
                name=f"{percent}/{name}",
                function=try_method,
                arguments=(settings, percent, name),
                needs=models,
            )
            for name in config.methods
        ]
    return found


def main() -> int:
    """Parse and run."""
    logging.basicConfig(level=logging.WARNING)
    config = tyro.cli(UnlearningTable, description=__doc__)
    use_all_cores()
    keep_freed_memory()
    try:
        if config.markdown is not None:
            print(table(config, config.markdown))
        elif config.plot_only is not None:
            draw(config, config.plot_only, config.figure)
        else:
            run_jobs(jobs(config), config.launcher, logs=config.out / "logs")
            print(table(config, config.out))
            found = collect(config, config.out)
            write_comparison(
                {
                    f"forget {percent} %": {
                        name: cards
                        for (own, name), cards in found.items()
                        if own == percent
                    }
                    for percent in config.percents
                },
                config.out / "comparison.html",
            )
    except InputError as error:
        print(f"unlearning_table: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
