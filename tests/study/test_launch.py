"""The same jobs here, in processes, through submitit and through Ray."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import launch_jobs
import pytest
import tyro

from lt_mia_jax.errors import InputError
from lt_mia_jax.study import launch
from lt_mia_jax.study.launch import Job, LauncherFlags, Local, Ray, Slurm, run_jobs
from lt_mia_jax.study.launch_worker import drop_programs


@pytest.fixture(scope="module")
def local_ray():
    ray = pytest.importorskip("ray")
    # Ray forks to start its programs, which JAX warns of where it has been used.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def launcher(name, request):
    if name == "slurm":
        submitit = pytest.importorskip("submitit")
        patience = "_results_timeout_s"  # with a file that may still come, 15 s
        request.getfixturevalue("monkeypatch").setattr(submitit.Job, patience, 1)
        return Slurm(cluster="local", cpus_per_task=1)
    if name == "ray":
        request.getfixturevalue("local_ray")
        return Ray()
    return Local(int(name))


def study(folder: Path, deadly: bool) -> list[Job]:
    """Two branches end well; one breaks, one dies, and something needs each."""
    path = folder.joinpath
    kill = launch_jobs.die_unless if deadly else launch_jobs.write_if
    return [
        Job(
            name="target/a",
            function=launch_jobs.write,
            arguments=(path("target"), path("base")),
            needs=("base",),
        ),
        Job(
            name="after broken",
            function=launch_jobs.write,
            arguments=(path("after-broken"), path("broken")),
            needs=("broken",),
        ),
        Job(
            name="last",
            function=launch_jobs.write,
            arguments=(path("last"), path("after-broken"), path("base")),
            needs=("base", "after broken"),
        ),
        Job(name="base", function=launch_jobs.write, arguments=(path("base"),)),
        Job(
            name="broken",
            function=launch_jobs.write_if,
            arguments=(path("mended"), path("broken")),
        ),
        Job(name="dead", function=kill, arguments=(path("mended"), path("dead"))),
        Job(
            name="after dead",
            function=launch_jobs.write,
            arguments=(path("after-dead"), path("dead")),
            needs=("dead",),
        ),
    ]


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["1", "2", "slurm", "ray"])
def test_failures_stay_alone_and_a_rerun_does_only_the_rest(
    name, tmp_path, request, caplog
):
    caplog.set_level("INFO", "lt_mia_jax.study.launch")
    chosen, work, logs = launcher(name, request), tmp_path / "work", tmp_path / "logs"
    work.mkdir()
    jobs = study(work, deadly=name != "1")
    loaded = set(sys.modules)
    with pytest.raises(InputError) as caught:
        run_jobs(jobs, chosen, logs=logs)
    first, said = written(work), str(caught.value)
    assert set(first) == {"base", "target"}
    assert said.startswith("2 of 7 jobs failed: ")
    assert (
        f"broken (LookupError: mended is missing; log: {logs / 'broken.log'})" in said
    )
    assert "more is said here" in (logs / "broken.log").read_text()
    skipped = said.split("not run, as they need these: ")[1].split(". The same")[0]
    assert set(skipped.split(", ")) == {"after broken", "last", "after dead"}
    here = {text.split()[0] for text in first.values()} == {str(os.getpid())}
    assert here == (name == "1")
    if here:
        assert not {"submitit", "ray"} & (set(sys.modules) - loaded)
    else:
        assert "SIGKILL" in said or "died" in said or "left no result" in said
        log = (logs / "target" / "a.log").read_text()
        assert log.split("\n")[:2] == ["writing target", "a child writes target"]
        assert {text.split()[2] for text in first.values()} == {"False"}
    if name == "2":
        most = -(-len(os.sched_getaffinity(0)) // 2)
        assert {int(text.split()[1]) for text in first.values()} <= {most, 1}

    (work / "mended").touch()
    shown = {line.split(", ")[0].split("] ")[1] for line in caplog.messages}
    assert {"base finished", "target/a finished", "last skipped"} <= shown
    assert [line.split()[0] for line in caplog.messages] == [
        f"[{number}/7]" for number in range(1, 8)
    ]
    run_jobs(jobs, chosen, logs=logs)
    second = written(work)
    assert {
        *first,
        "mended",
        "after-broken",
        "last",
        "broken",
        "dead",
        "after-dead",
    } == {*second}
    assert {path: second[path] for path in first} == first


def test_a_job_whose_node_is_taken_queues_again(tmp_path):
    pytest.importorskip("submitit")
    arguments = (tmp_path / "first", tmp_path / "done")
    job = Job(name="job", function=launch_jobs.interrupted_once, arguments=arguments)
    run_jobs([job], Slurm(cluster="local"), logs=tmp_path / "logs")
    assert {"first", "done"} <= {path.name for path in tmp_path.iterdir()}


SCRIPT = """
if __name__ == "__main__":
    from pathlib import Path
    import launch_jobs
    from lt_mia_jax.study import launch

    first, done = Path("first"), Path("done")
    job = launch.Job(
        name="job", function=launch_jobs.stop_once, arguments=(first, done)
    )
    launch.run_jobs([job], launch.Local(2), logs=Path("logs"))
"""


def test_sigterm_reaches_the_jobs_and_the_command_goes_on(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(launch.__file__).parents[2]
    paths = (root, Path(launch_jobs.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment
    )
    until = time.monotonic() + 60
    while not (tmp_path / "done.ready").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert (tmp_path / "first").read_text() == "stopped"
    arguments = (tmp_path / "first", tmp_path / "done")
    run_jobs(
        [Job(name="job", function=launch_jobs.stop_once, arguments=arguments)], Local()
    )
    assert (tmp_path / "done").exists()


def job(name, *needs):
    return Job(name=name, function=launch_jobs.write, needs=needs)


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ([job("a"), job("b"), job("a")], ["'a'", "own name"]),
        ([job("a", "b")], ["'b'", "no jobs"]),
        ([job("a", "b"), job("b", "c"), job("c", "a")], ["circle", "a -> ", "b", "c"]),
        ([job("../a")], ["'../a'", "letters"]),
    ],
)
def test_wrong_graphs_are_refused_before_anything_runs(jobs, words):
    with pytest.raises(InputError) as caught:
        run_jobs([*jobs, job("ran")], Local())
    assert all(word in str(caught.value) for word in words)


def test_what_cannot_be_sent_and_missing_packages_are_named(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="job a cannot be sent"):
        run_jobs([Job(name="a", function=lambda: None)], Local(2), logs=tmp_path)
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    for chosen, extra in ((Slurm(), "slurm"), (Ray(), "ray")):
        with pytest.raises(InputError) as caught:
            run_jobs([job("a")], chosen, logs=tmp_path)
        assert f"pip install 'lt-mia-jax[{extra}]'" in str(caught.value)


def test_compiled_programs_go_when_they_fill_the_memory_maps(tmp_path):
    maps, traced = tmp_path / "maps", []

    @jax.jit
    def program(x):
        traced.append(1)
        return x + 1

    maps.write_text("a\nb\nc\n")
    for most, wanted in ((3, 1), (2, 2)):
        program(jnp.ones(2))
        drop_programs(most, maps)
        program(jnp.ones(2))
        assert len(traced) == wanted
    drop_programs(0, tmp_path / "elsewhere")  # no Linux


def test_flags_of_a_script_have_no_prefix():
    def main(jobs: Annotated[LauncherFlags, tyro.conf.arg(name="")]) -> LauncherFlags:
        return jobs

    def parse(line):
        return tyro.cli(main, args=line.split()).chosen

    assert parse("") == Local(1)
    assert parse("--workers 3") == Local(3)
    assert parse("--launcher slurm --slurm.partition gpu --slurm.gpus-per-node 1") == (
        Slurm(partition="gpu", gpus_per_node=1)
    )
    assert parse("--launcher ray --ray.cpus 2") == Ray(cpus=2.0)
