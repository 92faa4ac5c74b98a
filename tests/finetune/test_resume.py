"""Real processes, really killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
import numpy as np
from oracle_finetune import Toy, random_texts
from lt_mia_jax.finetune import FinetuneConfig, finetune
from lt_mia_jax.trees import flatten

model = Toy()
result = finetune(
    model, model.init(jax.random.key(0)), random_texts(58, seed=1),
    random_texts(9, seed=2), FinetuneConfig(learning_rate=0.02, batch_size=4),
    directory=sys.argv[2], save_every_seconds=float(sys.argv[3]),
)
np.savez(sys.argv[2] + "/final.npz", **flatten(result.params))
"""


def start(directory, seconds):
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, tests, str(directory), str(seconds)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def newest(directory):
    """The newest step that is complete."""
    finished = (directory / "state").glob("[0-9]*/manifest.json")
    return max((int(path.parent.name) for path in finished), default=0)


def test_kill_minus_nine_changes_nothing(tmp_path):
    (tmp_path / "whole").mkdir()
    finish(start(tmp_path / "whole", 3600))
    directory = tmp_path / "killed"
    directory.mkdir()
    generator = random.Random(0)
    for _ in range(3):
        # A checkpoint after every step: most moments are inside a save.
        before = newest(directory)
        process = start(directory, 0)
        while newest(directory) <= before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert newest(directory) > before
    killed_at = newest(directory)
    assert killed_at < 45
    finish(start(directory, 3600))
    with (
        np.load(tmp_path / "whole" / "final.npz") as expected,
        np.load(directory / "final.npz") as found,
    ):
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    history = (directory / "history.jsonl").read_text()
    assert history == (tmp_path / "whole" / "history.jsonl").read_text()
    assert not list((directory / "state").glob("damaged*"))
