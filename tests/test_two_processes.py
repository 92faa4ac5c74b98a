"""One of two processes is killed; the supervisor starts both again; nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_world

ROOT = Path(__file__).parent.parent

GCLOUD = """#!/usr/bin/env bash
# A slice of two workers on this machine: runs what is sent by ssh, each in its folder.
case "$*" in
  *queued-resources\\ describe*) echo ACTIVE ;;
  *tpu-vm\\ ssh*)
    all="$*"
    command="${all#*--command=}"
    for worker in 0 1; do
      cd "$FAKE/worker-$worker" || exit 1
      WORKER=$worker RUNS="$PWD/runs" bash -c "$command"
    done ;;
esac
"""

SHARE = """#!/usr/bin/env bash
exec "$@" --distributed "127.0.0.1:$PORT,$WORKER,2"
"""


def extract(world, root, kill):
    """The files of a store made by two supervised processes, one killed on the way."""
    for worker in "01":
        folder = root / f"worker-{worker}"
        folder.mkdir(parents=True)
        (folder / "lt_mia_jax").symlink_to(ROOT)
    for name, text in (("gcloud", GCLOUD), ("share", SHARE)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    store = root / "store"
    command = [str(root / "share"), sys.executable, "-m", "lt_mia_jax", "extract"]
    command += [*world.arguments(), "--members", str(world.members)]
    command += ["--nonmembers", str(world.nonmembers), "--out", str(store)]
    command += ["--k", "3", "--length", "16", "--batch-size", "2", "--block-texts", "2"]
    names = ("PROJECT", "ZONE", "NAME", "TYPE", "RUNTIME", "BUCKET")
    environment = (
        os.environ
        | dict.fromkeys(names, "x")
        | {
            "PATH": f"{root}:{os.environ['PATH']}",
            "FAKE": str(root),
            "PORT": str(port),
            "POD_ENV": str(root / "none"),
            "POLL_SECONDS": "0.5",
            "STOP_SECONDS": "1",
            "JAX_NUM_CPU_DEVICES": "1",
        }
    )
    with open(root / "log", "w") as log:
        supervisor = subprocess.Popen(
            ["bash", str(ROOT / "tpu_setup/supervise.sh"), "job", *command],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        if kill:
            wait_for(lambda: len(list(store.glob("block-*"))) >= 2, supervisor)
            pid = int((root / "worker-1/runs/job/pid").read_text())
            os.kill(pid, signal.SIGKILL)
        code = supervisor.wait(timeout=400)
    finally:
        supervisor.kill()
    log = (root / "log").read_text()
    assert code == 0, log
    assert ("start 2 of job" in log) == kill, log
    return {path.name: path.read_bytes() for path in store.iterdir()}


def wait_for(condition, process):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_process_changes_nothing(world_of_many, tmp_path):
    whole = extract(world_of_many, tmp_path / "whole", kill=False)
    killed = extract(world_of_many, tmp_path / "killed", kill=True)
    assert len([name for name in whole if name.startswith("block")]) == 300
    for name in ("run.json", "config.json", "store.json"):  # name folders and times
        del whole[name], killed[name]
    del whole["manifest.json"], killed["manifest.json"]  # hashes those
    assert killed == whole


@pytest.fixture(scope="module")
def world_of_many(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return tiny_world.build(root, members=300, nonmembers=300)
