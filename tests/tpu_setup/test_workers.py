"""What happens on the workers of a slice."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tpu_cloud import SCRIPTS

from lt_mia_jax import provenance


@pytest.fixture
def home(tmp_path):
    """The home folder of a worker that has the scripts; ends what was left running."""
    shutil.copytree(SCRIPTS, tmp_path / "lt_mia_jax/tpu_setup")
    yield tmp_path
    for file in tmp_path.glob("runs/*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)


def wait_for(condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_run_returns_while_the_command_goes_on(cloud, home):
    waits = "echo up; while [ ! -e stop ]; do sleep 0.1; done; exit 4"
    # Its output goes through a pipe, which stays open for whoever holds it.
    done, _ = cloud("run.sh", "job", "timeout", "30", "bash", "-c", waits, WORKER="1")
    assert done.returncode == 0, done.stderr
    log = home / "runs/job/log"
    wait_for(lambda: log.exists() and log.read_text() == "up\n", "no start")
    assert not (home / "runs/job/code").exists()
    (home / "lt_mia_jax/stop").touch()
    code = home / "runs/job/code"
    wait_for(lambda: code.exists() and code.read_text() == "4\n", "no end")


def test_run_without_code_on_the_worker_fails(cloud):
    done, _ = cloud("run.sh", "job", "true", WORKER="1")
    assert done.returncode == 1
    assert "no code here; sync.sh sends it" in done.stderr


SAVES = """import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit() if sys.argv[1] == "ends" else None
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
while True: time.sleep(0.05)
"""


@pytest.mark.parametrize("how", ["ends", "stays"])
def test_stop_ends_what_a_shell_leaves_behind(cloud, home, how):
    program = home / "program.py"
    program.write_text(SAVES)
    line = shlex.join([sys.executable, str(program), how])
    # The shell does not hand on the signal that ends it.
    done, _ = cloud("run.sh", "job", "bash", "-c", f"{line}; echo after", WORKER="1")
    assert done.returncode == 0, done.stderr
    log = home / "runs/job/log"
    wait_for(lambda: log.exists() and log.read_text() == "up\n", "no start")
    group = int((home / "runs/job/pid").read_text())
    patience = {"ends": "20", "stays": "3"}[how]
    done, _ = cloud("stop.sh", "job", WORKER="1", STOP_SECONDS=patience)
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "up\nsaved\n"

    def gone():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, 0)
            return False
        return True

    wait_for(gone, "a process is left")


def test_sync_sends_the_commit_and_removes_what_it_lacks(cloud, tmp_path):
    root = tmp_path / "lt_mia_jax"
    kept = [root / ".venv/bin/python", root / "runs/a/log", tmp_path / "runs/b/log"]
    stale = [root / "lt_mia_jax/deleted.py", root / "experiments/deleted.py"]
    for file in (*kept, *stale):
        file.parent.mkdir(parents=True)
        file.touch()
    done, calls = cloud("sync.sh", WORKER="1")
    assert done.returncode == 0, done.stderr
    assert [file.exists() for file in (*kept, *stale)] == [True] * 3 + [False] * 2
    assert (root / "lt_mia_jax/provenance.py").exists()
    head = ["git", "-C", str(SCRIPTS), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout
    assert (root / "COMMIT").read_text() == commit
    # All at once may fail before the first connection has spread the key.
    workers = [call.split("--worker=")[1][:3] for call in calls if "--worker=" in call]
    assert workers == ["0 -", "all"]


def test_the_noted_commit_is_used_where_there_is_no_checkout(tmp_path, monkeypatch):
    module = tmp_path / "lt_mia_jax/provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(module))
    module.parent.mkdir()
    module.touch()
    assert provenance.git_commit() is None
    (tmp_path / "COMMIT").write_text("abc123\n")
    assert provenance.git_commit() is None
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "another"\n')
    assert provenance.git_commit() is None
    shutil.copy(SCRIPTS.parent / "pyproject.toml", project)
    assert provenance.git_commit() == "abc123"


def test_setup_mounts_the_shared_folder(cloud):
    done, calls = cloud("setup_workers.sh", MOUNT="sudo mount a:/b /mnt/c")
    assert done.returncode == 0, done.stderr
    assert calls[-1].endswith("--worker=all --command=sudo mount a:/b /mnt/c")


def test_no_text_sends_what_a_command_writes_to_a_bucket():
    for file in (*SCRIPTS.rglob("*.sh"), SCRIPTS / "README.md"):
        assert not re.search(r"--(out|folder) gs://", file.read_text()), file


def worker(tmp_path, *command):
    return subprocess.Popen(
        ["bash", str(SCRIPTS / "worker.sh"), "job", *command],
        env={"PATH": os.environ["PATH"], "RUNS": str(tmp_path), "LOG_SECONDS": "1"},
    )


@pytest.mark.parametrize("code", [0, 7, 143])
def test_worker_keeps_output_and_exit_code(tmp_path, code):
    process = worker(tmp_path, "bash", "-c", f"echo 'a  b'; exit {code}")
    assert process.wait(20) == code
    assert (tmp_path / "job/log").read_text() == "a  b\n"
    assert (tmp_path / "job/code").read_text().strip() == str(code)
    assert not (tmp_path / "job/pid").exists()


def test_worker_hands_on_sigterm_and_refuses_a_second_start(tmp_path):
    saves = "import signal, sys, time\n"
    saves += "def save(*_):\n    time.sleep(0.3); print('saved'); sys.exit(5)\n"
    saves += "signal.signal(signal.SIGTERM, save)\n"
    saves += "print('up', flush=True)\nwhile True: time.sleep(0.05)"
    process = worker(tmp_path, sys.executable, "-c", saves)
    log = tmp_path / "job/log"
    end = time.monotonic() + 20
    while not (log.exists() and "up" in log.read_text()):
        assert time.monotonic() < end, "the command did not start"
        time.sleep(0.02)
    assert worker(tmp_path, "true").wait(20) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 5
    assert "saved" in log.read_text()
    assert (tmp_path / "job/code").read_text().strip() == "5"


def check_pod(folder, *arguments, **settings):
    devices = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, SCRIPTS / "check_pod.py", "--folder", folder, *arguments],
        env={**os.environ, **devices, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_check_pod_on_simulated_devices(tmp_path):
    done = check_pod(tmp_path / "new", "--devices", "4")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines] == [" good"] * 4
    assert "= 6" in lines[1]
    assert list((tmp_path / "new").iterdir()) == []
    wrong = check_pod(tmp_path, "--devices", "16")
    assert wrong.returncode == 1
    assert "4 devices, expected 16" in wrong.stdout


def test_check_pod_names_what_a_bucket_needs(tmp_path):
    for name in ("gcsfs", "tensorflow"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    done = check_pod("gs://bucket/x/check", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("folder: FAILED: gs://bucket/x/check needs gcsfs; ")
    assert "pip install gcsfs" in last
