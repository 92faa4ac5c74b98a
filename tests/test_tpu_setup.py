"""The pod scripts, against a stand-in for gcloud that records how it was called."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lt_mia_jax import provenance

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

GROUP = {
    "API": "gce",
    "MACHINE": "ct6e-standard-4t",
    "TOPOLOGY": "4x4",
    "HOSTS": "2",
    "IMAGE_FAMILY": "family",
    "TYPE": "",
    "RUNTIME": "",
}

GCLOUD = """#!/usr/bin/env bash
# Answers `describe` and `ssh` with the lines of queues, one a call; records the rest.
# With WORKER=1 it is the worker too, and runs what is sent there.
echo "$@" >> "$FAKE/calls"
next() {
  head -n 1 "$FAKE/$1"
  [ "$(wc -l < "$FAKE/$1")" -gt 1 ] && sed -i 1d "$FAKE/$1"
}
answer() {
  line="$(next "$1")"
  [ "$line" = NONE ] && echo "ERROR: NOT_FOUND: 'slice' was not found" >&2 && exit 1
  [ "$line" = ERROR ] && echo "ERROR: Reauthentication failed" >&2 && exit 1
  tr '|' '\\n' <<< "$line"
}
# Each line of the queue is a call that fails, once.
pattern="$(head -n 1 "$FAKE/fails")"
if [ -n "$pattern" ] && [[ "$*" == *"$pattern"* ]]; then
  sed -i 1d "$FAKE/fails"
  echo "ERROR: already exists" >&2
  exit 7
fi
place() { echo "${1/#gs:\\/\\//$FAKE/gs/}"; }
case "$*" in
  storage\\ cp*)
    to="$(place "${@: -1}")"
    mkdir -p "$(dirname "$to")" && cp "$(place "${@: -2:1}")" "$to" ;;
  *queued-resources\\ describe* | *instanceStatus*) answer states ;;
  *"for r in"*) answer reports ;;
  *instance.basename*) printf 'w1\\nw0\\n' ;;
  *" ssh "*)
    all="$*"
    [ -z "${WORKER:-}" ] || { cd && exec bash -c "${all##*--command=}"; } ;;
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

    def script(
        name, *arguments, states=("ACTIVE",), reports=("",), fails=(), **settings
    ):
        (fake / "calls").write_text("")
        queues = {"states": states, "reports": reports, "fails": fails}
        for queue, lines in queues.items():
            (fake / queue).write_text("".join(f"{line}\n" for line in lines))
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
    assert own == {*EVERY, "common.sh", "gce.sh", "worker.sh"}


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


def test_create_asks_again_while_gcloud_fails(cloud):
    states = ("NONE", "ERROR", "ERROR", "PROVISIONING", "ERROR", "ACTIVE")
    done, calls = cloud("create.sh", states=states)
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "resources create" in call]) == 1
    assert done.stderr.count("ERROR: Reauthentication failed") == 3
    assert "asking again" in done.stderr
    states = ("PROVISIONING", "ERROR")
    done, calls = cloud("create.sh", states=states, TRIES="3")
    assert done.returncode == 2
    assert "not known" in done.stderr.splitlines()[-1]
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["create.sh", "delete.sh"])
def test_a_failed_question_is_not_an_absent_slice(cloud, name):
    flags = ("--yes",) if name == "delete.sh" else ()
    done, calls = cloud(name, *flags, states=("ERROR",))
    assert done.returncode == 2
    assert "ERROR: Reauthentication failed" in done.stderr
    assert "not known" in done.stderr
    assert "there is no request" not in done.stderr
    assert len(calls) == 1


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
    assert "wrong input" in done.stderr
    assert len(starts(calls)) == 1


def starts(calls):
    return [call for call in calls if "worker.sh job it" in call]


GOING = "w0 job: running: step 1"
GOOD = "w0 job: exit code 0: ok"


def test_supervise_leaves_a_run_alone_while_workers_do_not_answer(cloud):
    reports = (GOING, "ERROR", "ERROR", GOING, "ERROR", GOOD)
    done, calls = cloud("supervise.sh", "job", "it", reports=reports, TRIES="2")
    assert done.returncode == 0, done.stderr
    assert not [call for call in calls if "kill" in call.split("for r in")[0]]
    assert starts(calls) == []
    assert done.stderr.count("no answer from the workers") == 3


def test_supervise_counts_lasting_silence_as_a_failure(cloud):
    reports = (GOING, "ERROR", "ERROR", "ERROR", GOOD)
    done, calls = cloud("supervise.sh", "job", "it", reports=reports, TRIES="2")
    assert done.returncode == 0, done.stderr
    assert len(starts(calls)) == 1


def test_supervise_asks_again_for_the_state(cloud):
    states = ("ERROR", "ERROR", "ACTIVE")
    done, calls = cloud("supervise.sh", "job", "it", states=states, reports=(GOOD,))
    assert done.returncode == 0, done.stderr
    assert not [call for call in calls if "resources create" in call]
    flags = ("--restarts", "1", "job", "it")
    done, calls = cloud("supervise.sh", *flags, states=("ERROR",), TRIES="2")
    assert done.returncode == 2
    assert len(calls) == 6
    assert "ERROR: Reauthentication failed" in done.stderr


@pytest.mark.parametrize("fails", ["storage cp /tmp", "pip install", "worker.sh"])
def test_supervise_goes_on_after_a_failed_step(cloud, fails):
    done, calls = cloud(
        *("supervise.sh", "job", "it"),
        states=("NONE", "NONE", "ACTIVE"),
        reports=("", "", GOOD) if fails == "worker.sh" else ("", GOOD),
        fails=(fails,),
    )
    assert done.returncode == 0, done.stderr
    # What failed is repeated, from the slice's preparation on.
    assert len([call for call in calls if "pip install" in call]) >= 1
    assert len([call for call in calls if fails in call]) >= 2
    assert len(starts(calls)) == (2 if fails == "worker.sh" else 1)
    flags = ("--restarts", "1", "job", "it")
    done, calls = cloud("supervise.sh", *flags, fails=("worker.sh",) * 9)
    assert done.returncode == 2
    assert len(starts(calls)) == 2
    assert "after 1 restarts" in done.stderr


@pytest.mark.parametrize("code", [0, 2])
def test_supervise_starts_whatever_an_earlier_run_ended_with(cloud, code):
    reports = (f"w0 job: exit code {code}: earlier", GOING, GOOD)
    done, calls = cloud("supervise.sh", "job", "it", reports=reports)
    assert done.returncode == 0, done.stderr
    assert len(starts(calls)) == 1
    done, calls = cloud("supervise.sh", "job", "it", reports=(GOING, GOOD))
    assert done.returncode == 0, done.stderr
    assert starts(calls) == []


def test_supervise_takes_no_codes_from_a_start_that_failed(cloud):
    done, calls = cloud(
        *("supervise.sh", "job", "it"),
        reports=(GOOD, f"{GOOD}|w1 job: running: waits for w0", GOOD),
        fails=("worker.sh",),
    )
    assert done.returncode == 0, done.stderr
    assert len(starts(calls)) == 2


def test_a_lost_process_is_no_success(cloud):
    done, calls = cloud(
        *("supervise.sh", "job", "it"),
        reports=("", f"{GOOD}|w1 job: lost: step 7", f"{GOOD}|w1 job: exit code 0: ok"),
    )
    assert done.returncode == 0, done.stderr
    assert len(starts(calls)) == 2


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


def test_an_unknown_api_is_refused(cloud):
    done, calls = cloud("create.sh", API="aws")
    assert (done.returncode, calls) == (2, [])
    assert "API 'aws': expected tpu-vm or gce" in done.stderr


def test_the_example_has_all_settings(cloud):
    example = str(SCRIPTS / "env.example")
    settings = {**dict.fromkeys(SETTINGS, ""), "POD_ENV": example}
    for api in ("", "gce"):
        done, _ = cloud("create.sh", "--dry-run", **settings, API=api)
        assert done.returncode == 0, done.stderr


WHERE = "--zone=z-1 --project=p"
MEMBERS = f"gcloud compute instance-groups managed list-instances slice {WHERE}"
GCE = {
    "create.sh": [
        "gcloud compute resource-policies create workload-policy slice --region=z "
        "--project=p --type=HIGH_THROUGHPUT --accelerator-topology=4x4",
        "gcloud compute instance-templates create slice --project=p "
        "--machine-type=ct6e-standard-4t --image-family=family "
        "--image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB "
        "--maintenance-policy=TERMINATE --scopes=cloud-platform "
        "--provisioning-model=SPOT --instance-termination-action=STOP",
        f"gcloud compute instance-groups managed create slice {WHERE} "
        "--template=slice --size=2 --target-size-policy-mode=bulk "
        "--default-action-on-vm-failure=do-nothing "
        "--workload-policy=projects/p/regions/z/resourcePolicies/slice",
        f"{MEMBERS} --format=value(instanceStatus)",
    ],
    "logs.sh": [
        f"{MEMBERS} --format=value(instance.basename())",
        f"gcloud compute ssh INSTANCE {WHERE} --command=tail -n 100  runs/name/log",
    ],
    "delete.sh": [
        f"gcloud compute instance-groups managed delete slice {WHERE} --quiet",
        "gcloud compute instance-templates delete slice --project=p --quiet",
        "gcloud compute resource-policies delete slice --region=z --project=p --quiet",
    ],
}


@pytest.mark.parametrize("name", sorted({*EVERY} - {"gke/submit.sh"}))
def test_a_group_of_instances_is_the_slice_with_gce(cloud, name):
    done, calls = cloud(name, "--dry-run", *EVERY[name], **GROUP)
    assert (done.returncode, calls) == (0, []), done.stderr
    lines = [" ".join(shlex.split(line)) for line in done.stdout.splitlines()]
    assert not [line for line in lines if "compute tpus" in line]
    assert lines == GCE.get(name, lines)


def test_create_waits_for_all_instances_of_a_group(cloud):
    states = ("NONE", "", "RUNNING|PROVISIONING", "RUNNING|RUNNING")
    done, calls = cloud("create.sh", states=states, **GROUP)
    assert done.returncode == 0, done.stderr
    assert len([call for call in calls if "managed create" in call]) == 1
    assert done.stderr.count("WAITING_FOR_RESOURCES") == 2
    done, calls = cloud("create.sh", states=("RUNNING|TERMINATED",), **GROUP)
    assert done.returncode == 2
    assert "SUSPENDED" in done.stderr


def test_create_uses_what_an_interrupted_request_has_left(cloud):
    settings = {**GROUP, "states": ("NONE", "RUNNING|RUNNING")}
    # The stand-in's error says that it already exists.
    done, calls = cloud("create.sh", **settings, fails=("workload-policy slice",))
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if "managed create" in call]
    done, calls = cloud("delete.sh", "--yes", **settings, fails=("templates",))
    assert done.returncode != 0
    assert "already exists" in done.stderr


def test_a_command_runs_on_every_instance_of_a_group(cloud):
    done, calls = cloud("stop.sh", "name", **GROUP)
    assert done.returncode == 0, done.stderr
    assert sorted(call.split()[2] for call in calls if " ssh " in call) == ["w0", "w1"]
    done, calls = cloud("stop.sh", "name", **GROUP, fails=("ssh w0",))
    assert done.returncode == 1
    assert len([call for call in calls if " ssh " in call]) == 2
    done, calls = cloud("logs.sh", "--worker", "1", "name", **GROUP)
    assert [call.split()[2] for call in calls if " ssh " in call] == ["w1"]
    done, calls = cloud("logs.sh", "--worker", "2", "name", **GROUP)
    assert done.returncode == 1
    assert "slice has no worker 2" in done.stderr


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
