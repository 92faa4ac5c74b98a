"""What all scripts have in common."""

import shlex
import shutil
import subprocess

import pytest
from tpu_cloud import EVERY, SCRIPTS, SETTINGS


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


def test_a_flag_of_one_script_is_unknown_to_others(cloud):
    done, calls = cloud("stop.sh", "--restarts", "3", "name")
    assert (done.returncode, calls) == (2, [])
    done, calls = cloud("logs.sh", "name", "--worker")
    assert (done.returncode, calls) == (2, [])
    assert "--worker needs a value" in done.stderr
    done, calls = cloud("logs.sh", "name", "--follow", "--worker", "3")
    assert "--worker=3 --command=tail -n 100 -F runs/name/log" in calls[0]


def test_a_run_name_is_no_path(cloud):
    for name in ("run.sh", "stop.sh", "logs.sh"):
        done, calls = cloud(name, "a/../b", "command")
        assert (done.returncode, calls) == (2, [])


def test_the_example_has_all_settings(cloud):
    example = str(SCRIPTS / "env.example")
    settings = {**dict.fromkeys(SETTINGS, ""), "POD_ENV": example}
    for api in ("", "gce"):
        done, _ = cloud("create.sh", "--dry-run", **settings, API=api)
        assert done.returncode == 0, done.stderr
