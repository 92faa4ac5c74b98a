"""Jobs that need one another: here, in processes, as Slurm arrays, or as Ray tasks.

A `Job` names a function, its arguments and the jobs that must have succeeded before.
The function itself returns at once when its work is finished, so the same command goes
on after an interruption. A failed job stops only those that need it.
"""

import dataclasses
import graphlib
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import tyro
from tqdm import tqdm

from lt_mia_jax.errors import InputError, Stopped
from lt_mia_jax.process import exit_code, log_progress, use_machine
from lt_mia_jax.study.launch_worker import attempt

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME = re.compile(r"\w[\w.,+=@ -]*(/\w[\w.,+=@ -]*)*")
"""Also the path of a log file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One resumable piece of work; `name` is also that of its log file."""

    name: str
    function: Callable[..., None]
    """Importable, and returns at once when its work is finished."""
    arguments: tuple = ()
    needs: tuple[str, ...] = ()
    """Names of jobs that must have succeeded before."""

    def log(self, logs: Path) -> Path:
        """Its log in the folder of logs."""
        return logs / f"{self.name}.log"


@dataclasses.dataclass(frozen=True)
class Local:
    """On this machine."""

    workers: int = 1
    """1 runs jobs one after another in this process; more, that many spawned
    processes, which share the cores and CUDA_VISIBLE_DEVICES."""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Jobs that need only finished ones are one array (extra `slurm`)."""

    partition: str | None = None
    """Where to queue; the cluster's default when empty."""
    account: str | None = None
    """Whom to charge; the cluster's default when empty."""
    timeout_min: int = 240
    """Minutes of one job. A job whose time is up queues again, three times."""
    cpus_per_task: int = 4
    """Cores of one job."""
    gpus_per_node: int = 0
    """GPUs of one job."""
    mem_gb: float | None = None
    """Memory of one job; the cluster's default when empty."""
    array_parallelism: int = 32
    """Jobs of one array that run at a time."""
    folder: Path | None = None
    """Where submitit keeps its files, seen by all nodes; `submitit` beside the logs
    when empty."""
    cluster: Literal["slurm", "local"] = "slurm"
    """local starts every job of an array here and at once, to try things out."""


@dataclasses.dataclass(frozen=True)
class Ray:
    """Jobs are tasks, started as soon as what they need is there (extra `ray`)."""

    address: str | None = None
    """A running cluster, such as auto; empty starts one on this machine."""
    cpus: float = 1.0
    """Cores of one job."""
    gpus: float = 0.0
    """GPUs of one job."""
    retries: int = 0
    """How often a job whose machine or process died is tried again."""


Launcher = Local | Slurm | Ray


@dataclasses.dataclass(frozen=True, kw_only=True)
class LauncherFlags:
    """How jobs run. As a field of a command: `Annotated[..., tyro.conf.arg(name="")]`.

    Results do not depend on it.
    """

    launcher: Literal["local", "slurm", "ray"] = "local"
    """local: on this machine; slurm: as Slurm arrays, with submitit; ray: as tasks of
    Ray."""
    workers: int = 1
    """Of local: 1 runs jobs one after another in this process; more, that many
    spawned processes."""
    slurm: Slurm = Slurm()
    """How a job is queued."""
    ray: Ray = Ray()
    """What a task gets."""

    @property
    def chosen(self) -> Launcher:
        """The launcher that the flags name."""
        elsewhere = {"slurm": self.slurm, "ray": self.ray}
        return elsewhere.get(self.launcher, Local(self.workers))


class Ledger:
    """What became of each job, with progress on a terminal or in the log."""

    def __init__(self, jobs: int) -> None:
        self.failed: dict[str, str] = {}
        self.skipped: list[str] = []
        self._bar = tqdm(total=jobs, desc="jobs", disable=None)
        self._began = time.monotonic()

    def blocked(self, job: Job) -> bool:
        """Whether something needed has not succeeded; then the job is skipped."""
        bad = [need for need in job.needs if need in {*self.failed, *self.skipped}]
        if bad:
            self.skipped.append(job.name)
            self._show(f"{job.name} skipped, it needs {bad[0]}")
        return bool(bad)

    def finish(self, job: Job, error: str | None, where: Path | str) -> None:
        """Note the end of a job; `where` is the log of a failed one."""
        if error:
            self.failed[job.name] = f"{job.name} ({error}; log: {where})"
        self._show(f"{job.name} {f'failed: {error}' if error else 'finished'}")

    def close(self) -> None:
        """Refuse to go on if some job failed."""
        self._bar.close()
        if self.failed:
            said = "; ".join(self.failed.values())
            if self.skipped:
                said += f"; not run, as they need these: {', '.join(self.skipped)}"
            raise InputError(
                f"{len(self.failed)} of {self._bar.total} jobs failed: {said}. The "
                "same command tries these again and keeps what is finished"
            )

    def _show(self, line: str) -> None:
        self._bar.update()
        if self._bar.disable:
            self._bar.n += 1  # a bar that is not shown does not count
            passed = time.monotonic() - self._began
            log.info("[%d/%d] %s, %.0f s", self._bar.n, self._bar.total, line, passed)
        else:
            self._bar.write(line, file=sys.stderr)


def run_jobs(
    jobs: Sequence[Job],
    launcher: Launcher | LauncherFlags,
    *,
    logs: Path = Path("runs/logs"),
) -> None:
    """Run all jobs, each after those that it needs; `logs` gets a file from each.

    All machines must see that folder.

    Raises:
      InputError: before anything runs for names that are wrong, for needs that do not
        exist or go in circles, or for a missing package; at the end, when jobs failed.
    """
    if isinstance(launcher, LauncherFlags):
        launcher = launcher.chosen
    order, logs = in_order(jobs), logs.absolute()
    if not order:
        return
    if launcher == Local(1):
        _one_after_another(order, logs).close()
    else:
        from lt_mia_jax.study.launch_elsewhere import run_elsewhere

        run_elsewhere(order, launcher, logs).close()


def command(config_type: type[T], run: Callable[[T], None], about: str | None) -> int:
    """All of an experiment's `main`: parse its flags, run it, say what stopped it.

    `config_type` is the dataclass whose fields are the flags, `about` opens `--help`.
    Returns the exit code of `process.exit_code`.
    """
    log_progress()
    config = tyro.cli(config_type, description=about)
    use_machine()
    return exit_code(lambda: run(config), config_type.__module__.split(".")[-1])


def _one_after_another(order: list[Job], logs: Path) -> Ledger:
    ledger = Ledger(len(order))
    for job in order:
        if not ledger.blocked(job):
            path = job.log(logs)
            # SIGTERM is for the whole command, not for one job.
            error = attempt(job.function, job.arguments, path, through=(Stopped,))
            ledger.finish(job, error, path)
    return ledger


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each after those that it needs; refuses wrong names and needs."""
    named = {job.name: job for job in jobs}
    if len(named) < len(jobs):
        names = [job.name for job in jobs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"jobs {twice} are named twice; give every job its own name")
    for job in jobs:
        if not NAME.fullmatch(job.name):
            raise InputError(
                f"job {job.name!r}: its log is named after it; use letters, digits and "
                "any of -_.,+=@ and blanks, with / between folders"
            )
        if unknown := sorted(set(job.needs) - set(named)):
            raise InputError(
                f"job {job.name} needs {unknown}, which are no jobs; add them, or take "
                "them out of its needs"
            )
    try:
        return [named[name] for name in sorter_of(jobs).static_order()]
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise InputError(
            f"jobs need one another in a circle ({circle}); take out one of the needs"
        ) from None


def sorter_of(jobs: Sequence[Job]) -> graphlib.TopologicalSorter[str]:
    """Names of the jobs, and what each needs."""
    return graphlib.TopologicalSorter({job.name: job.needs for job in jobs})
