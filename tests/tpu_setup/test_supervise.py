"""`supervise.sh` restarts runs and slices."""

import pytest


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
