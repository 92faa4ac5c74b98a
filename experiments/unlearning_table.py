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
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from launch import Job, LauncherFlags, run_jobs

from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.cli import BAD_INPUT, keep_freed_memory, use_all_cores
from lt_mia_jax.commands import syntofu
from lt_mia_jax.commands.unlearn import inverted, refused
from lt_mia_jax.data.answers import EncodedAnswers, encode_answers
from lt_mia_jax.data.questions import Question
from lt_mia_jax.data.splits import hash_unit
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE, SynTofuConfig, build
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.report import write_comparison
from lt_mia_jax.unlearning.evaluate import (
    UTILITY,
    Measured,
    Subject,
    examine,
    membership,
    report_card,
)
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.train import ForgetTexts, UnlearnConfig, unlearn

VALIDATION = 0.3
"""Share of the forget questions that choose the setting, and are not reported on."""
RATE_FACTORS = {"mrp": 1000.0}
"""MRP trains directions by plain SGD, whose rates are of another size."""
SHOWN = (
    "model_utility",
    "forget_probability",
    "forget_slot_accuracy",
    "forget_quality",
    "priv_leak",
    "auc_loss",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data, models and what is tried on them."""

    preset: Literal["syntofu"] = "syntofu"
    """Data and models."""

    out: Path = Path("runs/unlearning")
    """Models, and one result a run."""

    family: syntofu.Family = "gpt2"
    """Architecture of the models."""

    methods: tuple[str, ...] = tuple(m for m in METHODS if m != "retrain")
    """Which ones."""

    percents: tuple[int, ...] = (1, 5, 10)
    """Sizes of the forget set."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the reported runs."""

    rates: tuple[float, ...] = (1e-4, 1.7e-4, 3e-4, 1e-3)
    """Learning rates that are tried."""

    epochs: tuple[int, ...] = (10,)
    """Numbers of passes over the forget set that are tried."""


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


def models_of(config: Settings) -> syntofu.SynTofu:
    """The command that writes the data and trains the models."""
    out = config.out / config.family
    return syntofu.SynTofu(out=out, family=config.family, data=SynTofuConfig())


class World:
    """SynTOFU with one size of the forget set, its models and its files."""

    def __init__(self, config: Settings, percent: int) -> None:
        """Open what the jobs of `make_model` made."""
        command = models_of(config)
        splits = build(command.data)
        forget, retain = f"forget{percent:02d}", f"retain{100 - percent:02d}"
        self.forget = list(splits[forget])
        self.perturbed = list(splits[f"{forget}_perturbed"])
        self.holdout = list(splits[f"holdout{percent:02d}"])
        self.utility = {name: list(splits[f"{name}_perturbed"]) for name in UTILITY}
        self.models = command.out / "models"
        self.results = results_of(config, percent)
        self.base, self.full = self.load("base"), self.load("full")
        self.retrained = {
            f"retrained-{seed}": self.load(f"{retain}-seed{seed}")
            for seed in command.seeds
        }
        refusals = list(splits["idk"])
        self.texts = ForgetTexts(
            self.encode(self.forget),
            [self.encode(rows) for rows in refused(self.forget, refusals)],
            [self.encode(rows) for rows in inverted(self.forget)],
        )
        self.keep = self.encode([*splits[retain], *splits["pretrain"]])
        first = next(iter(self.retrained.values()))
        self.truth = {part: self.measure(first, part) for part in (True, False)}

    def load(self, name: str) -> Subject:
        """One of the models."""
        config, params, tokenizer = load_pretrained(str(self.models / name))
        return Subject(LanguageModel(config), params, tokenizer, TEMPLATE, MAX_LENGTH)

    def encode(self, rows: list[Question]) -> EncodedAnswers:
        """What training reads."""
        return encode_answers(
            rows, self.full.tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
        )

    def measure(self, subject: Subject, validation: bool) -> Measured:
        """All that a card needs, on one part of the forget set."""

        def part(rows: list[Question]) -> list[Question]:
            return [
                row
                for row in rows
                if (hash_unit("validation", row.id) < VALIDATION) == validation
            ]

        sets = {"forget": part(self.perturbed), **self.utility}
        return Measured(
            {name: examine(subject, rows) for name, rows in sets.items()},
            membership(subject, self.base, part(self.forget)),
            membership(subject, self.base, self.holdout),
        )

    def card(self, subject: Subject, validation: bool) -> dict[str, Any]:
        """The report card of one model."""
        measured = self.measure(subject, validation)
        return report_card(measured, self.truth[validation])

    def attempt(self, name: str, rate: float, epochs: int, seed: int) -> Subject:
        """`full` after unlearning."""
        recipe = UnlearnConfig(
            learning_rate=rate * RATE_FACTORS.get(name, 1.0),
            epochs=epochs,
            batch_size=32,
            weight_decay=0.0,
            clip_norm=1.0,
            seed=seed,
        )
        result = unlearn(
            self.full.model,
            self.full.params,
            self.texts,
            self.keep,
            METHODS[name],
            recipe,
            directory=self.results / name / f"{rate:g}-{epochs}-{seed}",
            save_every_seconds=1e9,
        )
        return self.full._replace(
            params=result.params, intervention=result.intervention
        )


def results_of(config: Settings, percent: int) -> Path:
    """Folder of one size of the forget set."""
    return config.out / "results" / config.family / f"{percent:02d}"


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


def jobs(config: UnlearningTable) -> list[Job]:
    """Models first, then everything else in any order."""
    settings = Settings(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)}
    )
    found = [Job(name="data", function=make_data, arguments=(settings,))]
    kept = {f"retain{100 - percent:02d}" for percent in config.percents}
    names = [
        name
        for name in syntofu.model_names(models_of(settings))
        if name.partition("-")[0] in {"base", "full", *kept}
    ]
    found += [
        Job(
            name=f"model/{name}",
            function=make_model,
            arguments=(settings, name),
            needs=("data",) if name == "base" else ("model/base",),
        )
        for name in names
    ]
    models = tuple(f"model/{name}" for name in names)
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


def collect(config: UnlearningTable, out: Path) -> dict[tuple[int, str], list[Any]]:
    """Cards by percentage and method, one a seed."""
    found: dict[tuple[int, str], list[Any]] = {}
    for percent in config.percents:
        folder = out / "results" / config.family / f"{percent:02d}"
        names = [
            "full",
            *sorted(p.name for p in folder.glob("retrained-*")),
            *config.methods,
        ]
        for name in names:
            files = sorted((folder / name).glob("seed*.json")) or sorted(
                (folder / name).glob("card.json")
            )
            if files:
                found[percent, name] = [read_json(path) for path in files]
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


def table(config: UnlearningTable, out: Path) -> str:
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


def draw(config: UnlearningTable, out: Path) -> None:
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
            title=f"SynTOFU, forget {percent} %; crosses: PrivLeak above 25 %",
        )
    figure.tight_layout()
    figure.savefig(config.figure)


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
            draw(config, config.plot_only)
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
