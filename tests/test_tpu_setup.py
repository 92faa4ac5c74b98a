"""The pod scripts, against a stand-in for gcloud that records how it was called."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "tpu_setup"

SETTINGS = {
    "PROJECT": "p",
    "ZONE": "z-1",
    "NAME": "slice",
    "TYPE": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "BUCKET": "gs://bucket/x",
    "IMAGE": "registry/image",
    "POLL_SECONDS": "0.05",
}

GCLOUD = """#!/usr/bin/env bash
# Answers `describe` and `ssh` with the lines of queues, one a call; records the rest.
echo "$@" >> "$FAKE/calls"
next() {
  head -n 1 "$FAKE/$1"
  [ "$(wc -l < "$FAKE/$1")" -gt 1 ] && sed -i 1d "$FAKE/$1"
}
case "$*" in
  *queued-resources\\ describe*)
    line="$(next states)"
    [ "$line" = NONE ] && exit 1
    echo "$line" ;;
  *"for r in"*) next reports ;;
  *queued-resources\\ create*) exit "${CREATED:-0}" ;;
esac
exit 0
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder with the stand-in; returns a function that runs a script beside it."""
    fake = tmp_path / "fake"
    fake.mkdir()
    program = fake / "gcloud"
    program.write_text(GCLOUD)
    program.chmod(0o755)

    def script(name, *arguments, states=("ACTIVE",), reports=("",), **settings):
        (fake / "calls").write_text("")
        (fake / "states").write_text("".join(f"{line}\n" for line in states))
        (fake / "reports").write_text("".join(f"{line}\n" for line in reports))
        environment = {
            "PATH": f"{fake}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "FAKE": str(fake),
            "POD_ENV": str(tmp_path / "absent"),
            **SETTINGS,
            **settings,
        }
        done = subprocess.run(
            [str(SCRIPTS / name), *arguments],
            env={key: value for key, value in environment.items() if value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, (fake / "calls").read_text().splitlines()

    return script


EVERY = {
    "create.sh": (),
    "sync.sh": (),
    "setup_workers.sh": (),
    "run.sh": ("name", ".venv/bin/lt-mia", "audit"),
    "status.sh": (),
    "logs.sh": ("name",),
    "stop.sh": ("name",),
    "supervise.sh": ("name", "command", "argument"),
    "delete.sh": (),
    "gke/submit.sh": ("name", "lt-mia", "audit"),
}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is absent")
def test_shellcheck_finds_nothing():
    scripts = [*SCRIPTS.rglob("*.sh"), SCRIPTS.parent / ".ci/run"]
    done = subprocess.run(
        ["shellcheck", "-x", "--severity=warning", *scripts],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""


def test_every_script_is_listed():
    own = {str(p.relative_to(SCRIPTS)) for p in SCRIPTS.rglob("*.sh")}
    assert own == {*EVERY, "common.sh", "worker.sh"}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_dry_run_prints_commands_and_calls_nothing(cloud, name):
    done, calls = cloud(name, "--dry-run", *EVERY[name])
    assert done.returncode == 0, done.stderr
    assert calls == []
    programs = {shlex.split(line)[0] for line in done.stdout.splitlines()}
    assert programs <= {"gcloud", "git", "gcluster"}
    assert len(programs) >= 1
    for line in done.stdout.splitlines():
        if "compute tpus" in line:
            assert {"--zone=z-1", "--project=p"} <= set(shlex.split(line))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_help_says_how_to_call_it(cloud, name):
    done, calls = cloud(name, "--help")
    assert done.returncode == 0
    assert calls == []
    assert f"tpu_setup/{name} [--dry-run]" in done.stdout


@pytest.mark.parametrize("name", sorted({*EVERY} - {"gke/submit.sh"}))
def test_a_missing_setting_is_named(cloud, name):
    done, calls = cloud(name, "--dry-run", *EVERY[name], ZONE="")
    assert done.returncode == 2
    assert calls == []
    assert "not set: ZONE" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_an_unknown_flag_is_refused(cloud, name):
    done, calls = cloud(name, "--surprise", *EVERY[name])
    assert (done.returncode, calls) == (2, [])
    assert "'--surprise'" in done.stderr


def test_settings_come_from_the_file_and_are_not_evaluated(cloud, tmp_path):
    file = tmp_path / "env"
    file.write_text("# note\nZONE=$(touch oops)  # evil\nNAME=other\n")
    done, _ = cloud("create.sh", "--dry-run", POD_ENV=str(file), ZONE="", NAME="")
    assert "--node-id=other" in done.stdout
    assert "--spot" in shlex.split(done.stdout.splitlines()[0])
    assert not list(tmp_path.rglob("oops"))
    file.write_text("zone: z\n")
    done, _ = cloud("create.sh", "--dry-run", POD_ENV=str(file))
    assert done.returncode == 2
    assert "expected NAME=value, found 'zone: z'" in done.stderr


def test_create_requests_once_and_waits(cloud):
    states = ("NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done, calls = cloud("create.sh", states=states, SPOT="0")
    assert done.returncode == 0, done.stderr
    created = [call for call in calls if "resources create" in call]
    assert len(created) == 1
    assert "--accelerator-type=v5litepod-16" in created[0]
    assert "--spot" not in created[0]
    assert "PROVISIONING" in done.stderr


def test_create_leaves_an_active_slice_alone(cloud):
    done, calls = cloud("create.sh")
    assert done.returncode == 0
    assert not [call for call in calls if "resources create" in call]


def test_create_explains_a_failed_request(cloud):
    done, _ = cloud("create.sh", states=("FAILED",))
    assert done.returncode == 2
    assert "delete.sh" in done.stderr


def test_a_refused_request_ends_create_with_its_code(cloud):
    done, calls = cloud("create.sh", states=("NONE",), CREATED="9")
    assert done.returncode == 9
    assert len([call for call in calls if "describe" in call]) == 1


def test_a_flag_of_one_script_is_unknown_to_others(cloud):
    done, calls = cloud("stop.sh", "--restarts", "3", "name")
    assert (done.returncode, calls) == (2, [])
    done, calls = cloud("logs.sh", "name", "--worker")
    assert (done.returncode, calls) == (2, [])
    assert "--worker needs a value" in done.stderr
    done, calls = cloud("logs.sh", "name", "--follow", "--worker", "3")
    assert "--worker=3 --command=tail -n 100 -F runs/name/log" in calls[0]


def test_delete_needs_a_yes(cloud):
    done, calls = cloud("delete.sh")
    assert done.returncode == 2
    assert not [call for call in calls if "delete" in call]
    done, calls = cloud("delete.sh", "--yes")
    assert done.returncode == 0
    assert [call for call in calls if "queued-resources delete slice" in call]
    done, calls = cloud("delete.sh", states=("NONE",))
    assert done.returncode == 0
    assert not [call for call in calls if "delete" in call]


def test_a_run_name_is_no_path(cloud):
    for name in ("run.sh", "stop.sh", "logs.sh"):
        done, calls = cloud(name, "a/../b", "command")
        assert (done.returncode, calls) == (2, [])


def test_supervise_restarts_and_makes_a_lost_slice_anew(cloud):
    done, calls = cloud(
        "supervise.sh",
        *("job", "train", "it"),
        states=(
            *("ACTIVE", "ACTIVE"),  # nothing runs: first start
            *("ACTIVE", "ACTIVE"),  # it failed: second start
            *("SUSPENDED", "SUSPENDED", "NONE", "ACTIVE", "ACTIVE"),  # taken away
            "ACTIVE",
        ),
        reports=("", "w0 job: exit code 1: oh", "", "w0 job: exit code 0: done"),
    )
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "worker.sh job train it" in call]) == 3
    assert len([call for call in calls if "resources delete" in call]) == 1
    assert len([call for call in calls if "resources create" in call]) == 1
    assert "job is done" in done.stderr


def test_supervise_restarts_a_run_that_sigterm_stopped(cloud):
    done, calls = cloud(
        "supervise.sh",
        *("job", "it"),
        reports=(
            "w0 job: exit code 143: stopped by SIGTERM",
            "w0 job: exit code 0: ok",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "worker.sh job it" in call]) == 1


def test_supervise_gives_up(cloud):
    failed = ("w0 job: exit code 1: oh",)
    done, calls = cloud("supervise.sh", "--restarts", "1", "job", "it", reports=failed)
    assert done.returncode == 2
    assert "after 1 restarts" in done.stderr
    assert len([call for call in calls if "worker.sh job it" in call]) == 2
    wrong = ("w0 job: exit code 2: wrong",)
    done, calls = cloud("supervise.sh", "job", "it", reports=wrong)
    assert done.returncode == 2
    assert not [call for call in calls if "worker.sh" in call]


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


def check_pod(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / "check_pod.py", "--folder", folder, *arguments],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"},
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
