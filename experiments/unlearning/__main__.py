"""Every unlearning method on SynTOFU: what it forgets, what it keeps, what leaks.

python -m experiments.unlearning --out runs/unlearning --percents 10

For each method the same grid of learning rates and weights of the retain term is tried
on one seed, and one trial is chosen by a part of the forget set that is not reported
on, and by utility; that setting then runs on every seed. Each run is a file: a stopped
command goes on where it was, and --launcher spreads the methods. --markdown DIR prints
the table and --plot-only DIR draws the figure of what is there, both without running
anything. The whole command ends with OUT/comparison.html.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated, get_args

import tyro

from experiments.unlearning import jobs as unlearning_jobs
from experiments.unlearning.results import sections, table
from experiments.unlearning.setup import Settings, lacking, models_of
from lt_mia_jax.configs import narrowed
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.report import write_comparison, write_picture
from lt_mia_jax.study.launch import Job, LauncherFlags, command, run_jobs
from lt_mia_jax.study.syntofu import Family

log = logging.getLogger("lt_mia_jax.unlearning_table")


WRITES = Output(
    (
        *(*get_args(Family), "results", "logs", "comparison.html"),
        *("run.json", "config.json"),
    )
)


@dataclasses.dataclass(frozen=True)
class UnlearningTable(Settings):
    """Run methods and print their report cards side by side."""

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""

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


def _model_jobs(settings: Settings) -> list[Job]:
    kept = {f"retain{100 - percent:02d}" for percent in settings.percents}
    names = [
        name
        for name in models_of(settings).models
        if name.partition("-")[0] in {"base", "full", *kept}
    ]
    found = [
        Job(name="data", function=unlearning_jobs.make_data, arguments=(settings,))
    ]
    return found + [
        Job(
            name=f"model/{name}",
            function=unlearning_jobs.make_model,
            arguments=(settings, name),
            needs=("data",) if name == "base" else ("model/base",),
        )
        for name in names
    ]


def jobs(config: UnlearningTable) -> list[Job]:
    """Models first, then everything else in any order."""
    settings = narrowed(config, Settings)
    left_out = lacking(settings)
    for name, flag in left_out.items():
        log.warning("%s is left out; it needs %s", name, flag)
    found, models = [], ()
    if config.preset == "syntofu":
        found = _model_jobs(settings)
        models = tuple(job.name for job in found)
    for percent in config.percents:
        found.append(
            Job(
                name=f"{percent}/controls",
                function=unlearning_jobs.judge_controls,
                arguments=(settings, percent),
                needs=models,
            )
        )
        found += [
            Job(
                name=f"{percent}/{name}",
                function=unlearning_jobs.try_method,
                arguments=(settings, percent, name),
                needs=models,
            )
            for name in config.methods
            if name not in left_out
        ]
    return found


def run(config: UnlearningTable) -> None:
    """Run what is not finished and show all, or only show what is finished."""
    if config.markdown is not None:
        print(table(config, config.markdown))
        return
    if config.plot_only is not None:
        write_picture(sections(config, config.plot_only), config.figure)
        return
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "unlearning", config, overwrite=overwrite):
        run_jobs(jobs(config), config.launcher, logs=config.out / "logs")
        print(table(config, config.out))
        write_comparison(sections(config, config.out), config.out / "comparison.html")


if __name__ == "__main__":
    sys.exit(command(UnlearningTable, run, __doc__))
