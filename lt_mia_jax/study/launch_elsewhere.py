"""Launchers that run jobs outside this process; `launch.run_jobs` chooses one."""

import contextlib
import importlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lt_mia_jax.errors import InputError
from lt_mia_jax.process import TERMINATED
from lt_mia_jax.study import launch_worker
from lt_mia_jax.study.launch import Job, Launcher, Ledger, Local, Ray, Slurm, sorter_of

POLL = {"slurm": 10.0, "local": 0.5}
"""Seconds between two looks at the result files of an array, by cluster."""


def run_elsewhere(order: list[Job], launcher: Launcher, logs: Path) -> Ledger:
    """Run jobs that stand after what they need, as the launcher says."""
    with _stoppable():
        match launcher:
            case Local():
                return _processes(order, launcher, logs)
            case Slurm():
                return _slurm(order, launcher, logs)
            case Ray():
                return _ray(order, launcher, logs)


def _recorded(
    job: Job, logs: Path, dumps: Callable[[Any], bytes]
) -> launch_worker.Recorded:
    try:
        payload = dumps((job.function, job.arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"job {job.name} cannot be sent to another process ({error}); its function "
            "must be importable and its arguments plain values"
        ) from error
    return launch_worker.Recorded(payload, job.log(logs))


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"--launcher {extra} needs pip install 'lt-mia-jax[{extra}]' ({error})"
        ) from error


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the block like an exception, so that jobs elsewhere are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)


def _processes(order: list[Job], local: Local, logs: Path) -> Ledger:
    """`workers` spawned processes, each on its share of the cores, one job at a time.

    A process serves many jobs, so that what it loaded and compiled is of further use.
    """
    if local.workers < 1:
        raise InputError(f"workers {local.workers}: at least 1 is needed")
    work = {job.name: _recorded(job, logs, pickle.dumps) for job in order}
    named = {job.name: job for job in order}
    every = [Lane(number, local.workers) for number in range(local.workers)]
    lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
    for lane in every:
        lanes.put(lane)

    def task(recorded: launch_worker.Recorded) -> str | None:
        lane = lanes.get()
        try:
            return lane.run(recorded)
        finally:
            lanes.put(lane)

    # A pool of processes would break with the first one that dies; threads that each
    # wait for a process of their own learn of it alone.
    pool = futures.ThreadPoolExecutor(local.workers)
    sorter, ledger = sorter_of(order), Ledger(len(order))
    sorter.prepare()
    running: dict[futures.Future[str | None], Job] = {}
    try:
        while sorter.is_active():
            for job in map(named.__getitem__, sorter.get_ready()):
                if ledger.blocked(job):
                    sorter.done(job.name)
                    continue
                running[pool.submit(task, work[job.name])] = job
            for future in futures.wait(running, None, futures.FIRST_COMPLETED).done:
                job = running.pop(future)
                ledger.finish(job, future.result(), work[job.name].log)
                sorter.done(job.name)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for lane in every:
            lane.stop()
        raise
    finally:
        pool.shutdown()
        for lane in every:
            lane.close()
    return ledger


class Lane:
    """A worker process, started when it is first needed and again when it has died."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, work: launch_worker.Recorded) -> str | None:
        """Have it run a job, and wait; what went wrong, if anything."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None
        assert self._pipe is not None
        try:
            self._pipe.send(work)
            wait([self._pipe, self._process.sentinel])
            if self._pipe.poll():
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        self._process.join()
        return _died(self._process.exitcode or 0)

    def stop(self) -> None:
        """End the process in the middle of its job."""
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """Let the process end, and wait for it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join()

    def _start(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        spawn = get_context("spawn")
        ours, other = spawn.Pipe()
        assert isinstance(ours, Connection)
        self._pipe = ours
        _take_share(self.number, self.count)
        self._process = spawn.Process(
            target=launch_worker.serve, args=(self.number, self.count, other)
        )
        self._process.start()
        other.close()


def _take_share(lane: int, lanes: int) -> None:
    """Bind this thread, and so the process it starts, to its part of the cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(os.getpid()))
        os.sched_setaffinity(0, cores[lane::lanes] or [cores[lane % len(cores)]])


def _died(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no result"
    name = signal.Signals(-code).name
    memory = ", as happens when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"


def _slurm(order: list[Job], slurm: Slurm, logs: Path) -> Ledger:
    """An array for each set of jobs that need only finished ones."""
    submitit, cloudpickle = (_package(n, "slurm") for n in ("submitit", "cloudpickle"))
    work = {job.name: _recorded(job, logs, cloudpickle.dumps) for job in order}
    folder = (slurm.folder or logs / "submitit").absolute()
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=slurm.cluster)
    except RuntimeError as error:
        message = f"--launcher slurm: {error}; run it on a login node"
        raise InputError(message) from error
    executor.update_parameters(
        name="lt-mia",
        timeout_min=slurm.timeout_min,
        cpus_per_task=slurm.cpus_per_task,
        gpus_per_node=slurm.gpus_per_node or None,
        mem_gb=slurm.mem_gb,
        slurm_partition=slurm.partition,
        slurm_account=slurm.account,
        slurm_array_parallelism=slurm.array_parallelism,
    )
    named = {job.name: job for job in order}
    sorter, ledger = sorter_of(order), Ledger(len(order))
    sorter.prepare()
    while sorter.is_active():
        names = sorter.get_ready()
        wave = [named[name] for name in names if not ledger.blocked(named[name])]
        if not wave:
            sorter.done(*names)
            continue
        with _importable():
            try:
                queued = executor.submit_array([work[job.name] for job in wave])
            except RuntimeError as error:
                raise InputError(f"--launcher slurm: not accepted: {error}") from error
        jobs = {id(one): job for one, job in zip(queued, wave, strict=True)}
        try:
            for one in submitit.helpers.as_completed(
                queued, poll_frequency=POLL[slurm.cluster]
            ):
                job = jobs[id(one)]
                if one.exception():
                    error = f"its process left no result, state {one.state}"
                    ledger.finish(job, error, one.paths.stderr)
                else:
                    ledger.finish(job, one.result(), work[job.name].log)
        except BaseException:
            for one in queued:
                one.cancel(check=False)
            raise
        sorter.done(*names)
    return ledger


def _ray(order: list[Job], flags: Ray, logs: Path) -> Ledger:
    """A task a job, which waits for the results of those that it needs."""
    ray, cloudpickle = _package("ray", "ray"), _package("ray.cloudpickle", "ray")
    work = {job.name: _recorded(job, logs, cloudpickle.dumps) for job in order}
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(flags.address, include_dashboard=False, log_to_driver=False)
        except ConnectionError as error:
            raise InputError(
                f"--ray.address {flags.address}: {error}; start a cluster, or leave "
                "the flag out"
            ) from error
    task = ray.remote(
        num_cpus=flags.cpus,
        num_gpus=flags.gpus,
        max_retries=flags.retries,
        max_calls=1,  # what JAX holds is free again, as with every other launcher
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
    )(launch_worker.call)
    ledger = Ledger(len(order))
    results: dict[str, Any] = {}
    try:
        for job in order:
            needed = [results[name] for name in job.needs]
            results[job.name] = task.remote(work[job.name], *needed)
        waiting = list(order)
        while waiting:
            pending = [results[job.name] for job in waiting]
            ray.wait(pending)
            # All that is there by now: a job is never noted before what it needs.
            ready = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0])
            for job in [job for job in waiting if results[job.name] in ready]:
                waiting.remove(job)
                if not ledger.blocked(job):
                    error = _ray_error(ray, results[job.name])
                    ledger.finish(job, error, work[job.name].log)
    finally:
        if ours:
            ray.shutdown()
    return ledger


def _ray_error(ray: Any, result: Any) -> str | None:
    """What went wrong, in the job or with its process."""
    try:
        return ray.get(result)
    except ray.exceptions.RayError as error:
        first = str(error).strip().split("\n")[0]
        return f"{type(error).__name__}: {first}"


def _python_path() -> str:
    """Where this process finds modules, for those that run the jobs."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """What is started here, also by Slurm, finds modules where this process does."""
    earlier = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _python_path()
    try:
        yield
    finally:
        if earlier is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = earlier
