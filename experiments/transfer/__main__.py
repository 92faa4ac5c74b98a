"""One signature across architectures: trained on transformers, judged on the others.

Judged are an unseen transformer, Mamba, RWKV-4 and RecurrentGemma, fine-tuned on
corpora that neither the attack nor their own pretraining has seen.

python -m experiments.transfer --preset tiny --out runs/transfer

python -m experiments.transfer --preset paper --out runs/paper --launcher slurm

Every base, combination and attack is a job with a folder of its own: a stopped command
goes on where it was, and --launcher spreads the jobs. At the end the tables are
printed; --docs DIR writes results.md and its figures there, --tables-only does so from
what is finished, and --package DIR copies the attack that the package ships.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.transfer import jobs as transfer_jobs
from experiments.transfer import report as transfer_report
from experiments.transfer.attacks import attacks
from experiments.transfer.config import Study
from lt_mia_jax.configs import narrowed
from lt_mia_jax.errors import InputError
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.study.launch import Job, LauncherFlags, command, run_jobs

WRITES = Output(
    (
        *("corpora", "sources", "tokenizers", "bases", "combinations", "controls"),
        *("attacks", "logs", transfer_report.RESULTS, "run.json", "config.json"),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Study):
    """Make, train and judge everything of a preset."""

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""

    launcher: Annotated[LauncherFlags, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LauncherFlags
    )
    """How the jobs run."""

    attacks: tuple[str, ...] = ()
    """Only attacks whose names begin with one of these; all by default."""

    tables_only: bool = False
    """Make no models; report what is finished."""

    docs: Path | None = None
    """Write results.md and its figures into this folder."""

    package: Path | None = None
    """Copy the main attack, in the form in which the package ships it, to here."""

    resamples: int = 500
    """Behind each interval."""

    @property
    def study(self) -> Study:
        """What jobs need to know."""
        return narrowed(self, Study)


def jobs(config: Transfer) -> list[Job]:
    """Every base, combination and attack, with what it needs.

    Raises:
      InputError: a flag names what there is not.
    """
    study, plan = config.study, config.plan()
    bases = {base.name: f"base/{base.name}" for base in plan.bases}
    found = [
        Job(name="corpora", function=transfer_jobs.make_corpora, arguments=(study,))
    ]
    found += [
        Job(
            name=job,
            function=transfer_jobs.make_base,
            arguments=(study, name),
            needs=("corpora",),
        )
        for name, job in bases.items()
    ]
    named = {}
    for part, judged in ((plan.train, False), (plan.judge, True)):
        for combination in part:
            named[combination.name] = f"combination/{combination.name}"
            found.append(
                Job(
                    name=named[combination.name],
                    function=transfer_jobs.make_combination,
                    arguments=(study, combination, judged),
                    needs=(bases[combination.base],),
                )
            )
    everywhere = tuple(named[c.name] for c in plan.judge)
    found += [
        Job(
            name=f"control/{combination.name}",
            function=transfer_jobs.make_control,
            arguments=(study, combination),
            needs=(named[combination.name],),
        )
        for combination in plan.judge
    ]
    specs = attacks(plan, study.seed)
    idle = [w for w in config.attacks if not any(n.startswith(w) for n in specs)]
    if idle:
        raise InputError(
            f"--attacks {' '.join(idle)}: no attack begins so; there are "
            f"{', '.join(specs)}"
        )
    for name, spec in specs.items():
        if config.attacks and not name.startswith(config.attacks):
            continue
        found.append(
            Job(
                name=f"attack/{name}",
                function=transfer_jobs.make_attack,
                arguments=(study, name),
                needs=(*sorted(named[c] for c in spec.combinations), *everywhere),
            )
        )
    return found


def run(config: Transfer) -> None:
    """Run the jobs that are not finished, and report."""
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "transfer", config, overwrite=overwrite):
        _run(config)


def _run(config: Transfer) -> None:
    if not config.tables_only:
        run_jobs(jobs(config), config.launcher, logs=config.out / "logs")
    report = transfer_report.report(config.study, resamples=config.resamples)
    transfer_report.write(report, config.out, config.docs)
    print(report.markdown)
    if config.package is not None:
        transfer_report.package(config.study, config.package, report)


if __name__ == "__main__":
    sys.exit(command(Transfer, run, __doc__))
