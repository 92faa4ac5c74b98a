"""What a run says of the machine it ran on."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from lt_mia_jax import provenance


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
@pytest.mark.parametrize("count", [1, 2])
def test_cores_are_those_that_the_process_may_use(count):
    allowed = sorted(os.sched_getaffinity(0))[:count]
    if len(allowed) < count:
        pytest.skip("one core alone")
    code = (
        f"import os; os.sched_setaffinity(0, {allowed}); "
        "from lt_mia_jax.provenance import cores; print(cores())"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert int(found) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_the_record_of_a_run_names_them(tmp_path):
    provenance.write_run_record(tmp_path, "test", provenance.versions())
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["cores"] == len(os.sched_getaffinity(0))


def test_the_record_beside_a_file_is_that_of_the_run_that_wrote_it(tmp_path):
    path, beside = tmp_path / "a.jsonl", tmp_path / "a.jsonl.run.json"

    def run(name, *, fails=False, writes=True):
        with provenance.recorded(path, name, provenance.versions()):
            assert fails or json.loads(beside.read_text())
            if writes:
                path.write_text(name)
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("one", fails=True, writes=False)
    assert not beside.exists()
    for name, fails in (("one", False), ("two", True), ("three", False)):
        with contextlib.suppress(ZeroDivisionError):
            run(name, fails=fails)
        wrote = "one" if name == "two" else name
        assert json.loads(beside.read_text())["command"] == wrote
