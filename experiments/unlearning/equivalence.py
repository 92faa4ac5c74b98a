"""How often a card says that a model is as the retrained one, by number of records.

python -m experiments.unlearning.equivalence --out runs/equivalence

Models of SynTOFU are measured once on 160 questions of twenty authors; cards are then
decided for draws of some of them. `full` has forgotten nothing; retrained models of
other seeds have forgotten perfectly; half-way between the weights of both stands a
model that forgot in part. Beside the test of equivalence stands what a test that finds
no difference would have said: forget quality with p of at least 0.05.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE, SynTofuConfig, build
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.study.launch import command
from lt_mia_jax.study.syntofu import SynTofu, train_model, write_data
from lt_mia_jax.verification.evaluate import examine
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.equivalence import (
    MARGIN,
    equivalence,
    quantities,
)
from lt_mia_jax.verification.metrics.tofu import forget_quality
from lt_mia_jax.verification.records import DIFFERENT, EQUIVALENT

DATA = SynTofuConfig(forget_percent=(20,))
WRITES = Output(("data", "models", "run.json", "config.json"))
FULL, RETRAINED = "full", "retrained"
Values = Mapping[str, PerItem]
"""Values of each question by quantity."""


@dataclasses.dataclass(frozen=True)
class EquivalenceTable:
    """Count the draws in which a model counts as retrained."""

    out: Path
    """Folder of SynTOFU and its models, which are trained unless they are there."""

    records: tuple[int, ...] = (1, 2, 3, 4, 5, 8, 10, 20, 30, 50, 80, 100)
    """Numbers of questions in a draw."""

    persons: tuple[int, ...] = (1, 3, 6, 12)
    """Numbers of authors in a draw, with all eight questions of each."""

    draws: int = 200
    """Draws a number."""

    margins: tuple[float, ...] = (MARGIN,)
    """Margins of the test; one table each."""

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""

    devices: Annotated[DevicesFlags, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=Devices
    )
    """Where models are trained."""


class Counts(NamedTuple):
    """Of draws: said to be equivalent, to be different, and p of at least 0.05."""

    equivalent: int
    different: int
    not_told: int


def count(
    models: Mapping[str, Values],
    unlearned: str,
    draw: Callable[[], np.ndarray],
    draws: int,
    margin: float = MARGIN,
) -> Counts:
    """Decide so many draws of questions of one model.

    Args:
      models: values of all questions by model, `FULL` and `RETRAINED` among them.
      unlearned: the model that is judged.
      draw: rows of the questions of a draw.
      draws: number of draws.
      margin: of the test.
    """
    found = np.zeros(3, int)
    for _ in range(draws):
        rows = draw()
        full, judged, truth = (
            {name: values[rows] for name, values in models[model].items()}
            for model in (FULL, unlearned, RETRAINED)
        )
        decision = equivalence(full, judged, truth, margin=margin).decision
        p = forget_quality(np.exp(judged["truth_ratio"]), np.exp(truth["truth_ratio"]))
        found += decision == EQUIVALENT, decision == DIFFERENT, p.value >= 0.05
    return Counts(*found.tolist())


def table(
    models: Mapping[str, Values],
    sizes: Mapping[str, Callable[[], np.ndarray]],
    draws: int,
    margin: float,
) -> Iterator[str]:
    """Lines of Markdown: a row a size, for each model both rules."""
    names = [name for name in models if name != RETRAINED]
    heads = [f"{name}: as retrained / not / p >= .05" for name in names]
    yield f"| records | {' | '.join(heads)} |"
    yield "| --- " * (1 + len(names)) + "|"
    for size, draw in sizes.items():
        cells = []
        for name in names:
            counts = count(models, name, draw, draws, margin)
            cells.append(" / ".join(f"{100 * x / draws:.1f}" for x in counts))
        yield f"| {size} | {' | '.join(cells)} |"


def measured(config: EquivalenceTable) -> tuple[Mapping[str, Values], list[str]]:
    """Values of every question by model, and the author that each is about."""
    study = SynTofu(out=config.out, data=DATA, seeds=(0, 1, 2), devices=config.devices)
    write_data(study)
    executor = study.devices.make()
    for name in study.models:
        train_model(study, name, executor)
    rows = build(DATA)["forget20_perturbed"]

    def load(name: str) -> EvaluatedModel:
        shape, params, tokenizer = load_pretrained(config.out / "models" / name)
        model = LanguageModel(shape)
        return EvaluatedModel(model, params, tokenizer, TEMPLATE, MAX_LENGTH)

    full, truth = load("full"), load("retain80-seed0")
    middle = jax.tree.map(lambda x, y: (x + y) / 2, full.params, truth.params)
    models = {
        FULL: full,
        "half-way": full._replace(params=middle),
        "retrained, seed 1": load("retain80-seed1"),
        "retrained, seed 2": load("retain80-seed2"),
        RETRAINED: truth,
    }
    values = {name: quantities(examine(model, rows)) for name, model in models.items()}
    return values, [str(row.entity) for row in rows]


def run(config: EquivalenceTable) -> None:
    """Train what is missing, measure, and print the tables."""
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "equivalence", config, overwrite=overwrite):
        models, authors = measured(config)
    whole = equivalence(models[FULL], models["retrained, seed 1"], models[RETRAINED])
    print(f"Seed 1 against seed 0 on {whole.n} questions: {whole.shares}")
    rng = np.random.default_rng(0)
    who = np.unique(authors)

    def questions(size: int) -> np.ndarray:
        return rng.choice(len(authors), size, replace=False)

    def people(size: int) -> np.ndarray:
        return np.flatnonzero(np.isin(authors, rng.choice(who, size, replace=False)))

    sizes = {f"{n}": lambda n=n: questions(n) for n in config.records} | {
        f"{8 * n}, of {n} authors": lambda n=n: people(n) for n in config.persons
    }
    for margin in config.margins:
        print(f"\nMargin {margin:g}, {config.draws} draws, percent of draws:\n")
        for line in table(models, sizes, config.draws, margin):
            print(line)


if __name__ == "__main__":
    sys.exit(command(EquivalenceTable, run, __doc__))
