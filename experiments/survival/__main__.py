"""Does membership survive what is done to a model after fine-tuning?

python -m experiments.survival --out runs/survival --launcher.workers 2

Two experts of one tiny base learn texts of two corpora at three strengths. Each
operation (merge, swap, pack, adapt, stream, ...) makes a model of them, and the attacks
look for the members of each ingredient in it, and for texts that no model ever saw. The
demonstrations show every system on its own task, on five seeds. Each job is a file: a
stopped command goes on where it was. --docs DIR writes survival.md and its figure.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.survival import ingredients
from experiments.survival import jobs as survival_jobs
from experiments.survival.config import CORPORA, STRENGTHS, Study
from experiments.survival.demonstration import SEEDS
from experiments.survival.demos import DEMOS
from experiments.survival.operations import OPERATIONS
from experiments.survival.page import write_page
from lt_mia_jax.configs import narrowed
from lt_mia_jax.errors import InputError
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.study.launch import Job, LauncherFlags, command, run_jobs

WRITES = Output(
    (
        *("corpora", "tokenizer", "bases", "experts", "demos", "survival", "logs"),
        *("run.json", "config.json"),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survival(Study):
    """Run the demonstrations and the table of survival."""

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    launcher: Annotated[LauncherFlags, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LauncherFlags
    )
    """How the jobs run."""
    only: tuple[str, ...] = ()
    """Demonstrations and operations to run; `demos` and `operations` are all of one
    kind. Everything by default."""
    tables_only: bool = False
    """Run nothing; report what is finished."""
    docs: Path | None = None
    """Write survival.md and its figure into this folder."""

    @property
    def study(self) -> Study:
        """What jobs need to know."""
        return narrowed(self, Study)


def jobs(config: Survival) -> list[Job]:
    """Models first, then operations and demonstrations in any order.

    Raises:
      InputError: a flag names what there is not.
    """
    wrong = [name for name in config.strengths if name not in STRENGTHS]
    if wrong:
        raise InputError(f"--strengths {' '.join(wrong)}: choose from {[*STRENGTHS]}")
    names = {*DEMOS, *OPERATIONS, "demos", "operations"}
    wrong = [name for name in config.only if name not in names]
    if wrong:
        raise InputError(f"--only {' '.join(wrong)}: choose from {sorted(names)}")
    operations = _chosen(config, OPERATIONS, "operations")
    found = _models(config.study, config.strengths) if operations else []
    models = tuple(job.name for job in found)
    found += [
        Job(
            name=f"operation/{name}-{strength}",
            function=survival_jobs.survive,
            arguments=(config.study, name, strength),
            needs=tuple(
                m for m in models if not m.startswith("expert") or strength in m
            ),
        )
        for name in operations
        for strength in config.strengths
    ]
    return found + [
        Job(
            name=f"demo/{name}-{seed}",
            function=survival_jobs.demonstrate,
            arguments=(config.out, name, seed),
        )
        for name in _chosen(config, DEMOS, "demos")
        for seed in range(SEEDS)
    ]


def _chosen(config: Survival, table: dict, kind: str) -> list[str]:
    everything = not config.only or kind in config.only
    return [name for name in table if everything or name in config.only]


def _models(study: Study, strengths: tuple[str, ...]) -> list[Job]:
    found = [
        Job(name="data", function=ingredients.make_data, arguments=(study,)),
        Job(
            name="base/early",
            function=ingredients.make_early,
            arguments=(study,),
            needs=("data",),
        ),
        Job(
            name="base/late",
            function=ingredients.make_late,
            arguments=(study,),
            needs=("base/early",),
        ),
    ]
    return found + [
        Job(
            name=f"expert/{start}-{name}-{strength}",
            function=ingredients.make_expert,
            arguments=(study, start, name, strength),
            needs=(f"base/{start}",),
        )
        for strength in strengths
        for start, name in [*(("late", each) for each in CORPORA), ("early", "a")]
    ]


def run(config: Survival) -> None:
    """Run the jobs that are not finished, and report."""
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "survival", config, overwrite=overwrite):
        if not config.tables_only:
            run_jobs(jobs(config), config.launcher, logs=config.out / "logs")
        page = write_page(config.out, config.docs)
        print(page)


if __name__ == "__main__":
    sys.exit(command(Survival, run, __doc__))
