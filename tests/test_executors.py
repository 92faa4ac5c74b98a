"""One device, eight devices under jit and pmap, two processes: the same results."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

WORKER = Path(__file__).parent / "executor_worker.py"

ONE = "single:1x1"
LAYOUTS = {
    1: ("jit:8x1", "jit:4x2", "jit:1x8", "pmap:8x1"),
    2: ("jit:2x4", "pmap:8x1", "turned-jit:4x2"),
}
"""By the number of processes, which share eight devices."""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run(directory, processes, layouts):
    """The worker's results of some layouts on eight devices in all."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(8 // processes),
        "PYTHONPATH": str(WORKER.parent.parent),
    }
    address = f"127.0.0.1:{free_port()}"
    running, logs = [], []
    for number in range(processes):
        where = f"{address},{number},{processes}" if processes > 1 else "off"
        command = [sys.executable, str(WORKER), str(directory), where, *layouts]
        logs.append(directory / f"log-{number}")
        with open(logs[-1], "w") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment}
            running.append(subprocess.Popen(command, **options))
    codes = [process.wait(timeout=1200) for process in running]
    assert codes == [0] * processes, "".join(log.read_text() for log in logs)
    return {layout: dict(np.load(directory / f"{layout}.npz")) for layout in layouts}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    results = {}
    for processes, layouts in LAYOUTS.items():
        layouts = [*layouts, *([ONE] if processes == 1 else [])]
        directory = tmp_path_factory.mktemp(f"processes-{processes}")
        for layout, result in run(directory, processes, layouts).items():
            results[processes, layout] = result
    return results


@pytest.mark.parametrize(
    ("processes", "layout"),
    [(processes, layout) for processes in LAYOUTS for layout in LAYOUTS[processes]],
)
def test_equals_a_single_device(found, processes, layout):
    single, found = found[1, ONE], found[processes, layout]
    assert found.keys() == single.keys()
    np.testing.assert_array_equal(found["order"], np.arange(16))
    mask = single["mask"]
    np.testing.assert_array_equal(found["mask"], mask)
    for name in ("target_rank", "reference_rank"):
        np.testing.assert_array_equal(found[name], single[name])
    # Most columns are kept in 16 bits, whose last one may differ; and where two tokens
    # all but tie, a rank may move by one (here 0.001 of a normalized rank).
    mine, theirs = found["features"], single["features"]
    largest = np.abs(theirs).max(axis=(0, 1))
    np.testing.assert_array_less(
        np.abs(mine - theirs)[..., -10:].max(axis=(0, 1)), 1e-5 * largest[-10:]
    )
    last_bit = np.spacing(np.abs(theirs).astype(np.float16)).astype(np.float32)
    apart = np.abs(mine - theirs)[..., :-10]
    strays = apart > last_bit[..., :-10] + 1e-5
    assert strays.sum() <= 2
    assert apart[strays].max(initial=0) < 2e-3
    np.testing.assert_allclose(found["lower_loss"], single["lower_loss"], rtol=1e-5)
    for part in ("finetune", "attack"):
        losses, gradient = (f"{part}_{x}" for x in ("losses", "gradient"))
        assert len(found[losses]) == 20
        np.testing.assert_allclose(found[losses], single[losses], atol=1e-5)
        largest = np.abs(single[gradient]).max()
        np.testing.assert_allclose(
            found[gradient], single[gradient], atol=1e-5 * largest
        )
