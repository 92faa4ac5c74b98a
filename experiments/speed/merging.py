"""Time and memory of `lt-mia merge`, beside moving the same bytes.

python -m experiments.speed.merging --methods mean ties swap

Each method runs as a command of its own, as users start it. The copy reads every model
that the method reads and writes as many bytes as it writes, with `fsync`; safetensors
loads the same models to arrays and saves one. The same merge of tiny models says what
start-up takes: imports, tokenizers, compilation. All are repeated in turn, and each
figure is a median.
"""

import dataclasses
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from lt_mia_jax.checkpoints import save_pretrained
from lt_mia_jax.data import train_bpe
from lt_mia_jax.models import LanguageModel, llama_like
from lt_mia_jax.trees import flatten, unflatten

BASES = ("ties", "arithmetic", "pack")
"""Methods that read the base too."""
MIB = 2**20
PAUSE = 5
"""Seconds, in which the host of a virtual machine takes back the freed memory."""


@dataclasses.dataclass(frozen=True)
class Merging:
    """Write three Llama-like models, merge two of them, and copy as much."""

    methods: tuple[str, ...] = ("mean", "arithmetic", "ties", "swap")
    """Of `lt-mia merge`."""

    width: int = 768
    """Of the residual stream."""

    layers: int = 12
    """Number of blocks."""

    vocab_size: int = 32000
    """Tokens."""

    repeats: int = 3
    """Of each measurement."""


def write_models(root: Path, config: Merging) -> int:
    """Three folders, `a`, `b` and `base`; bytes of one model."""
    tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
    heads = config.width // 64
    sizes = (config.vocab_size, config.width, config.layers, heads, 512)
    model = llama_like(*sizes, tied=True)
    shapes = flatten(LanguageModel(model).shapes())
    for seed, name in enumerate(("a", "b", "base")):
        rng = np.random.default_rng(seed)
        leaves = {
            key: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
            for key, leaf in shapes.items()
        }
        save_pretrained(root / name, model, unflatten(leaves), tokenizer)
    return sum(4 * math.prod(leaf.shape) for leaf in shapes.values())


class Used(NamedTuple):
    """What a process took."""

    wall: float
    processor: float
    anonymous: float
    """Peak MiB of its own memory, without pages of files that the system can drop."""


def run(command: list[str]) -> Used:
    """Run a process to its end, when the memory of the one before is given back."""
    time.sleep(PAUSE)
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        found = re.search(r"RssAnon:\s+(\d+)", status.read_text())
        peak = max(peak, int(found[1])) if found else peak
        time.sleep(0.005)
    if done[1]:
        raise SystemExit(f"{' '.join(command)}: exit status {done[1]}")
    used, wall = done[2], time.monotonic() - began
    return Used(wall, used.ru_utime + used.ru_stime, peak / 1024)


def copy(sources: list[Path], out: Path) -> Used:
    """Read all sources with `cat` and copy the first with `cp`."""
    script = 'out=$1; shift; cat "$@" > /dev/null; cp "$1" "$out"; sync "$out"'
    return run(["sh", "-c", script, "sh", str(out), *map(str, sources)])


LOAD_AND_SAVE = """
import sys
from safetensors.numpy import load_file, save_file
models = [load_file(name) for name in sys.argv[2:]]
save_file(models[0], sys.argv[1])
"""


def load_and_save(sources: list[Path], out: Path) -> Used:
    """Have all sources in memory by safetensors, and write the first."""
    names = map(str, (out, *sources))
    return run([sys.executable, "-c", LOAD_AND_SAVE, *names])


def merge(root: Path, method: str, out: Path) -> Used:
    """Merge two models of a folder."""
    command = [sys.executable, "-m", "lt_mia_jax", "merge", "--method", method]
    command += ["--models", str(root / "a"), str(root / "b"), "--out", str(out)]
    if method in BASES:
        command += ["--base", str(root / "base")]
    used = run(command)
    shutil.rmtree(out)
    return used


COLUMNS = ("method", "start-up", "merging", "processor", "cp", "safetensors")
COLUMNS += ("merging / cp", "merging / safetensors", "anonymous memory")


class Measured(NamedTuple):
    """Medians of one method."""

    method: str
    startup: float
    """Seconds of a merge of tiny models."""
    wall: float
    """Seconds beyond that; so the columns that follow."""
    processor: float
    anonymous: float
    copy: float
    safetensors: float


def measure(root: Path, tiny: Path, method: str, repeats: int) -> Measured:
    """Merge, copy, load and save in turn."""
    names = ["a", "b", "base"] if method in BASES else ["a", "b"]
    files = [root / name / "model.safetensors" for name in names]
    found = []
    for _ in range(repeats):
        least, used = (merge(of, method, of / "out") for of in (tiny, root))
        more, moved = np.subtract(used, least), []
        for move in (copy, load_and_save):
            moved.append(move(files, root / "copy").wall)
            (root / "copy").unlink()
        found.append((least.wall, *more, *moved))
    return Measured(method, *np.median(found, axis=0))


def main() -> None:
    """Print a table of all methods."""
    config = tyro.cli(Merging)
    small = dataclasses.replace(config, width=64, layers=4, vocab_size=300)
    with tempfile.TemporaryDirectory() as folder:
        root, tiny = Path(folder) / "models", Path(folder) / "tiny"
        size, _ = write_models(root, config), write_models(tiny, small)
        largest = 4 * config.vocab_size * config.width / MIB
        logging.info("models %.0f MiB, largest tensor %.0f MiB", size / MIB, largest)
        logging.info(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for method in config.methods:
            m = measure(root, tiny, method, config.repeats)
            logging.info(
                f"| {method} | {m.startup:.1f} s | {m.wall:.1f} s "
                f"| {m.processor:.1f} s | {m.copy:.2f} s | {m.safetensors:.2f} s "
                f"| {m.wall / m.copy:.1f} | {m.wall / m.safetensors:.1f} "
                f"| {m.anonymous:.0f} MiB |"
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
