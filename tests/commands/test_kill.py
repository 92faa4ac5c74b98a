"""SIGKILL at random moments: the rerun ends where an uninterrupted run ends.

`LT_MIA_KILLS` sets how often each command is killed (default 2, to keep the suite
short). Each start is given a random share of the time an uninterrupted run takes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def wait_for_work(folder: Path, process: subprocess.Popen) -> None:
    """Until the command has written something, or has ended."""
    while process.poll() is None and not any(folder.rglob("*")):
        time.sleep(0.01)


def commands(world, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Arguments without --out, and the files that must come out equal."""
    attack = [
        *("--classifier.width", "16", "--classifier.heads", "2"),
        *("--recipe.epochs", "40", "--recipe.batch-size", "8"),
        *("--recipe.warmup-epochs", "1", "--recipe.save-seconds", "0"),
    ]
    return {
        "finetune": (
            [
                *("finetune", "--model", str(world.base), "--epochs", "40"),
                *("--texts", str(world.members), "--length", "32"),
                *("--batch-size", "4", "--save-seconds", "0"),
            ],
            ["model.safetensors"],
        ),
        "extract": (
            [
                *("extract", *world.arguments(), "--k", "4", "--length", "32"),
                *("--members", str(world.members), "--seed", "1"),
                *("--nonmembers", str(world.nonmembers), "--block-texts", "4"),
                *("--batch-size", "4"),
            ],
            [],
        ),
        "train": (
            ["train", "--features", str(folder / "store"), *attack],
            ["classifier.safetensors"],
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune", "extract", "train"])
def test_killed_runs_end_alike(command, world, tmp_path):
    store = ["extract", *world.arguments(), "--k", "4", "--length", "32"]
    texts = ["--members", str(world.members), "--nonmembers", str(world.nonmembers)]
    out = ["--out", str(tmp_path / "store"), "--seed", "1"]
    assert main([*store, *texts, *out]) == 0
    arguments, files = commands(world, tmp_path)[command]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    seconds = finish([*arguments, "--out", str(whole)], log)

    rng = random.Random(command)
    log.write_text("")
    for _ in range(KILLS):
        process = start([*arguments, "--out", str(killed)], log)
        wait_for_work(killed, process)
        time.sleep(rng.random() * 0.6 * seconds)
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
    assert "resum" in said or "continuing" in said or "finished" in said, said
