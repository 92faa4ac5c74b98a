"""SIGKILL and SIGTERM: the rerun ends where an uninterrupted run ends.

`LT_MIA_KILLS` sets how often each command is killed (default 2, to keep the suite
short). Every other kill falls at any moment of the run, start-up included; the rest
fall after the command has saved its first piece of work.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_world

from lt_mia_jax.cli import main
from lt_mia_jax.files import sha256_file

KILLS = int(os.environ.get("LT_MIA_KILLS", "2"))
MOST_SECONDS = 240


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lt_mia_jax", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=log.open("a"),
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )


def finish(arguments: list[str], log: Path) -> float:
    began = time.monotonic()
    assert start(arguments, log).wait(MOST_SECONDS) == 0, log.read_text()
    return time.monotonic() - began


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    """Until a file matches, or the command has ended."""
    while process.poll() is None and not any(folder.glob(pattern)):
        time.sleep(0.002)


def commands(world, folder: Path) -> dict[str, tuple[list[str], str, list[str]]]:
    """Arguments without --out, saved work as a glob, files that must come out equal."""
    attack = [
        *("--classifier.width", "16", "--classifier.heads", "2"),
        *("--recipe.epochs", "10", "--recipe.batch-size", "8"),
        *("--recipe.warmup-epochs", "1", "--recipe.save-seconds", "0"),
    ]
    return {
        "finetune": (
            [
                *("finetune", "--model", str(world.base), "--epochs", "2"),
                *("--texts", str(world.members), "--length", "32"),
                *("--batch-size", "8", "--save-seconds", "0"),
            ],
            "training/state/*/manifest.json",
            ["model.safetensors", "training/history.jsonl"],
        ),
        "extract": (
            [
                *("extract", *world.arguments(), "--k", "4", "--length", "32"),
                *("--members", str(world.members), "--seed", "1"),
                *("--nonmembers", str(world.nonmembers), "--block-texts", "4"),
                *("--batch-size", "4", "--name", "one"),
            ],
            "*.safetensors",
            [],
        ),
        "train": (
            ["train", "--features", str(folder / "store"), *attack],
            "state/*/manifest.json",
            ["classifier.safetensors", "metrics.jsonl"],
        ),
    }


@pytest.fixture(scope="module")
def larger_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("larger")
    return tiny_world.build(root, members=400, nonmembers=800)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_saves_and_says_so(larger_world, tmp_path):
    arguments, saved, _ = commands(larger_world, tmp_path)["finetune"]
    # Nothing is saved before the end unless SIGTERM asks for it.
    rare = [*arguments[:-1], "3600", "--out", str(tmp_path / "out")]
    log = tmp_path / "log"
    process = start(rare, log)
    wait_for(tmp_path / "out", "training/state", process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(MOST_SECONDS) == 143, log.read_text()
    last = log.read_text().splitlines()[-1]
    (folder,) = (tmp_path / "out").glob(saved)
    assert last == (
        f"lt-mia: stopped by SIGTERM after step {folder.parent.name}; "
        "the same command continues"
    )
    finish(rare, log)
    assert f"resumed from step {folder.parent.name} of" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", ["finetune", "extract", "train"])
def test_killed_runs_end_alike(command, world, larger_world, tmp_path):
    if command == "train":
        texts = ["--members", str(world.members), "--nonmembers", str(world.nonmembers)]
        store = ["extract", *world.arguments(), *texts, "--k", "4", "--length", "32"]
        assert main([*store, "--out", str(tmp_path / "store"), "--seed", "1"]) == 0
    arguments, saved, files = commands(larger_world, tmp_path)[command]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    seconds = finish([*arguments, "--out", str(whole)], log)

    rng = random.Random(command)
    log.write_text("")
    for kill in range(KILLS):
        process = start([*arguments, "--out", str(killed)], log)
        if kill % 2:
            time.sleep(rng.random() * seconds)
        else:
            wait_for(killed, saved, process)
            time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish([*arguments, "--out", str(killed)], log)
    if not files:
        files = sorted(
            str(path.relative_to(whole))
            for path in whole.rglob("*")
            if path.is_file() and path.name not in ("run.json", "config.json")
        )
    assert len(files) >= 1
    for name in files:
        assert sha256_file(whole / name) == sha256_file(killed / name), name
    said = log.read_text()
    assert "resumed from step" in said or "continuing, " in said, said
