"""SIGTERM to real processes: they save, say so, and the same call continues."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lt_mia_jax.training.preemption import StopRequest

STEPS = 60

WORKER = """
import sys, time
import jax
directory, processes, process, port = sys.argv[1], *map(int, sys.argv[2:5])
if processes > 1:
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=processes, process_id=process
    )
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from lt_mia_jax.errors import Stopped
from lt_mia_jax.executor import make_executor
from lt_mia_jax.training import Checkpointer, MetricsWriter, TrainState, fit, init_state

optimizer = optax.adam(0.01)

def step(state, batch, key):
    def loss(params):
        return jnp.square(batch["x"] @ params["w"] - batch["y"]).mean()
    value, grads = jax.value_and_grad(loss)(state.params)
    updates, inner = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, inner), {"loss": value}

def batch_at(index):
    time.sleep(0.04)
    rng = np.random.default_rng(index)
    x = rng.normal(size=(8, 128)).astype(np.float32)
    return {"x": x, "y": np.roll(x, 1, axis=1)}

def run(name, steps):
    return fit(
        step,
        init_state({"w": jnp.zeros((128, 128))}, optimizer),
        total_steps=steps,
        batch_at=batch_at,
        key=jax.random.key(0),
        executor=make_executor(data=1, fsdp=jax.device_count()),
        checkpointer=Checkpointer(f"{directory}/{name}"),
        save_every_seconds=3600.0,
        # A file of its own for each process.
        metrics=MetricsWriter(f"{directory}/{name}-{process}.jsonl"),
    )

try:
    # Steps of an earlier call must not count as steps of the next.
    run("short", 5)
    result = run("long", int(sys.argv[5]))
except Stopped as stop:
    sys.stderr.write(f"{stop}\\n")
    sys.exit(143)
w = result.state.params["w"]
if processes > 1:
    w = multihost_utils.process_allgather(w, tiled=True)
np.save(f"{directory}/final-{process}.npy", w)
"""


def start(directory, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2" if processes == 1 else "1"}
    directory.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WORKER, str(directory), str(processes)),
                *(str(process), str(port), str(STEPS)),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(directory / f"log-{process}").open("w"),
        )
        for process in range(processes)
    ]


def finish(directory, processes):
    codes = [process.wait(120) for process in processes]
    logs = [(directory / f"log-{n}").read_text() for n in range(len(processes))]
    return codes, logs


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_the_step_and_the_same_call_continues(tmp_path, processes):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    codes, logs = finish(whole, start(whole, processes))
    assert codes == [0] * processes, logs

    running = start(stopped, processes)
    history = stopped / "long-0.jsonl"
    until = time.monotonic() + 120
    # Rows reach the file in blocks, so a checkpoint folder says that it has begun.
    while not (stopped / "long").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1.0)
    # To the last one only: with several, the others must hear of it.
    running[-1].send_signal(signal.SIGTERM)
    codes, logs = finish(stopped, running)
    assert codes == [143] * processes, logs
    line = re.compile(r"stopped by SIGTERM after step (\d+); the same command")
    said = [line.findall(log) for log in logs]
    (after,) = {int(step) for steps in said for step in steps}
    assert 1 <= after < STEPS
    assert all(len(steps) == 1 for steps in said)
    assert [p.name for p in (stopped / "long").iterdir()] == [str(after)]
    assert lines(history) == after

    codes, logs = finish(stopped, start(stopped, processes))
    assert codes == [0] * processes, logs
    assert lines(history) == STEPS
    for process in range(processes):
        np.testing.assert_array_equal(
            np.load(stopped / f"final-{process}.npy"),
            np.load(whole / f"final-{process}.npy"),
        )


@pytest.fixture
def heard():
    """SIGTERMs that reach whoever listened before."""
    calls = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGTERM, earlier)


def test_the_earlier_handler_is_put_back(heard):
    with StopRequest() as request:
        assert not request.reached()
        signal.raise_signal(signal.SIGTERM)
        assert request.reached()
        assert not request.reached()
    assert heard == []
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_signal_after_the_last_question_is_passed_on(heard):
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_other_threads_leave_signals_alone(heard):
    def enter():
        with StopRequest() as request:
            before.append(signal.getsignal(signal.SIGTERM))
            assert not request.reached()

    before = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert before == [signal.getsignal(signal.SIGTERM)]
