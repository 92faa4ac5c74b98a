"""Time and memory of `lt-mia merge`, beside copying the same bytes.

python -m experiments.speed.merging --methods mean ties swap

Each method runs as a command of its own, as users start it; the copy reads every model
that the method reads and writes as many bytes as it writes, with `fsync`. The same
merge of tiny models says what start-up takes: imports, tokenizers, compilation.
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
    """Run a process to its end."""
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


def copy(sources: list[Path], out: Path) -> float:
    """Seconds to read all sources and to write the first."""
    began = time.monotonic()
    for source in sources[1:]:
        with source.open("rb") as file:
            while file.read(16 * MIB):
                pass
    shutil.copyfile(sources[0], out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())
    return time.monotonic() - began


def merge(root: Path, method: str, out: Path) -> Used:
    """Merge two models of a folder."""
    command = [sys.executable, "-m", "lt_mia_jax", "merge", "--method", method]
    command += ["--models", str(root / "a"), str(root / "b"), "--out", str(out)]
    if method in BASES:
        command += ["--base", str(root / "base")]
    used = run(command)
    shutil.rmtree(out)
    return used


def main() -> None:
    """Print one line a method."""
    config = tyro.cli(Merging)
    small = dataclasses.replace(config, width=64, layers=1, vocab_size=300)
    with tempfile.TemporaryDirectory() as folder:
        root, tiny = Path(folder) / "models", Path(folder) / "tiny"
        size, _ = write_models(root, config), write_models(tiny, small)
        largest = 4 * config.vocab_size * config.width / MIB
        logging.info("models %.0f MiB, largest tensor %.0f MiB", size / MIB, largest)
        for method in config.methods:
            least = merge(tiny, method, tiny / "out")
            used = merge(root, method, root / "out")
            names = ["a", "b", "base"] if method in BASES else ["a", "b"]
            files = [root / name / "model.safetensors" for name in names]
            copied = copy(files, root / "copy")
            wall, memory = used.wall - least.wall, used.anonymous - least.anonymous
            logging.info(
                "%-10s %.1f s and %.0f MiB of a tiny model, and %.1f s (%.1f s "
                "processor) and %.0f MiB more; copy %.2f s: ratio %.1f; "
                "%.1f times the largest tensor",
                method,
                least.wall,
                least.anonymous,
                wall,
                used.processor - least.processor,
                memory,
                copied,
                wall / copied,
                memory / largest,
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
