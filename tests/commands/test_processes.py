"""Commands as two processes of two devices: they write what one process writes."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_world
from safetensors.numpy import load_file

from lt_mia_jax.attacks import load_attack, score_features
from lt_mia_jax.cli import main
from lt_mia_jax.features.store import FeatureStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

COMMAND = """
import sys
from lt_mia_jax import cli, executor
executor.SHOWS_WITHIN = 1.0
sys.exit(cli.main(sys.argv[1:]))
"""


def start(root, command, outs):
    """One command as processes of one run, each with its --out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root.mkdir(exist_ok=True)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    running = []
    for number, out in enumerate(outs):
        where = f"127.0.0.1:{port},{number},{len(outs)}"
        arguments = [*command, "--out", str(out), "--distributed", where]
        with (root / f"log-{number}").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-c", COMMAND, *arguments],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return running


def finish(root, running):
    """Exit codes and what was said."""
    try:
        codes = [process.wait(300) for process in running]
    finally:
        for process in running:
            process.kill()
    return codes, [(root / f"log-{n}").read_text() for n in range(len(running))]


def together(root, command, out):
    """Two processes that must succeed."""
    codes, logs = finish(root, start(root, command, [out, out]))
    assert codes == [0, 0], logs


@pytest.fixture(scope="module")
def world_of_many(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return tiny_world.build(root, members=300, nonmembers=300)


def finetune(world):
    return [
        *("finetune", "--model", str(world.base), "--epochs", "2", "--batch-size", "8"),
        *("--texts", str(world.members), "--length", "32"),
    ]


def extract(world):
    return [
        *("extract", *world.arguments(), "--k", "4", "--length", "32", "--seed", "1"),
        *("--members", str(world.members), "--nonmembers", str(world.nonmembers)),
        *("--batch-size", "2", "--block-texts", "8", "--name", "one"),
    ]


def train(store):
    return [
        *("train", "--features", str(store), "--recipe.epochs", "2"),
        *("--classifier.width", "16", "--classifier.heads", "2"),
        *("--recipe.batch-size", "32", "--recipe.warmup-epochs", "0.5"),
    ]


@pytest.fixture(scope="module")
def alone(world_of_many, tmp_path_factory):
    """What this process writes, with four devices."""
    root = tmp_path_factory.mktemp("alone")
    store = root / "store"
    for command, name in (
        (finetune(world_of_many), "model"),
        (extract(world_of_many), "store"),
        (train(store), "attack"),
    ):
        assert main([*command, "--out", str(root / name)]) == 0
    return root


def equal_models(found, expected, before):
    found, expected, before = (
        load_file(path / "model.safetensors") for path in (found, expected, before)
    )
    assert found.keys() == expected.keys() == before.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    assert max(np.abs(found[name] - before[name]).max() for name in before) > 1e-3


def equal_attacks(found, expected, store):
    # Not their weights: a key's bias has no gradient but rounding, which Adam scales.
    losses = [
        [
            row["loss"]
            for row in tiny_world.read_rows(path / "metrics.jsonl")
            if "loss" in row
        ]
        for path in (found, expected)
    ]
    assert len(losses[0]) >= 20
    np.testing.assert_allclose(*losses, atol=1e-5)
    features, mask = FeatureStore.open(store).features()
    logits = [
        score_features(load_attack(path), features, mask) for path in (found, expected)
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert np.std(logits[0]) > 0.01


def equal_stores(found, expected):
    found, expected = FeatureStore.open(found), FeatureStore.open(expected)
    assert found.ids == expected.ids
    assert found.labels == expected.labels
    for ours, theirs in zip(found.features(), expected.features(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_fine_tuning_extraction_and_training(world_of_many, alone, tmp_path):
    model, store, attack = (tmp_path / name for name in ("model", "store", "attack"))
    together(tmp_path / "1", finetune(world_of_many), model)
    equal_models(model, alone / "model", world_of_many.base)
    together(tmp_path / "2", extract(world_of_many), store)
    equal_stores(store, alone / "store")
    together(tmp_path / "3", train(alone / "store"), attack)
    equal_attacks(attack, alone / "attack", alone / "store")


def test_sigterm_to_one_stops_both_and_they_go_on(world_of_many, alone, tmp_path):
    store = tmp_path / "store"
    running = start(tmp_path / "1", extract(world_of_many), [store, store])
    end = time.monotonic() + 200
    while len(list(store.glob("block-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    running[1].send_signal(signal.SIGTERM)
    codes, logs = finish(tmp_path / "1", running)
    assert codes == [143, 143], logs
    assert all("the same command continues" in log for log in logs)
    kept = {path.name for path in store.glob("block-*")}
    assert 2 <= len(kept) < 75
    assert not (store / "manifest.json").exists()
    together(tmp_path / "2", extract(world_of_many), store)
    equal_stores(store, alone / "store")


def test_folders_of_their_own_are_refused(world_of_many, tmp_path):
    outs = [tmp_path / "own-0", tmp_path / "own-1"]
    codes, logs = finish(tmp_path, start(tmp_path, extract(world_of_many), outs))
    assert codes == [2, 2], logs
    for log, out in zip(logs, outs, strict=True):
        assert f"{out}: 1 of 2 processes do not see" in log.splitlines()[-1]
        assert not list(out.glob("block-*"))


def test_a_folder_of_somebody_else_is_refused_by_all(world_of_many, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    codes, logs = finish(tmp_path, start(tmp_path, extract(world_of_many), [out, out]))
    assert codes == [2, 2], logs
    assert f"--out {out}: holds notes.txt" in logs[0]
    assert "the first process says what is wrong" in logs[1]
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


ALONE = """
import sys
from lt_mia_jax import cli, executor
executor.JOINS_WITHIN = 3.0
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "not all 2 came to 127"), (1, "process 0 does not answer at 127")],
)
def test_a_process_that_stays_alone_ends_with_a_line(tmp_path, number, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["train", "--features", "x", "--out", str(tmp_path / "out")]
    command += ["--distributed", f"127.0.0.1:{port},{number},2"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"({words}.0.0.1:{port} within 3 s)" in done.stderr
    assert not (tmp_path / "out").exists()
