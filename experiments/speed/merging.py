"""Time and memory of `lt-mia merge`, beside copying the same bytes.

python -m experiments.speed.merging --methods mean ties swap

Each method runs as a command of its own, as users start it; the copy reads every model
that the method reads and writes as many bytes as it writes, with `fsync`.
"""

import dataclasses
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak resident MiB of a process."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {status}")
    wall = time.monotonic() - began
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


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


def main() -> None:
    """Print one line a method."""
    config = tyro.cli(Merging)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_models(root, config)
        logging.info(
            "models of %.0f MiB; start-up of `lt-mia merge --help`:", size / MIB
        )
        start = run([sys.executable, "-m", "lt_mia_jax", "merge", "--help"])[0]
        logging.info("  %.1f s", start)
        for method in config.methods:
            names = ["a", "b", "base"] if method in BASES else ["a", "b"]
            command = [sys.executable, "-m", "lt_mia_jax", "merge", "--method", method]
            command += ["--models", *(str(root / name) for name in names[:2])]
            if method in BASES:
                command += ["--base", str(root / "base")]
            out = root / "merged"
            wall, processor, peak = run([*command, "--out", str(out)])
            shutil.rmtree(out)
            files = [root / name / "model.safetensors" for name in names]
            copied = copy(files, root / "copy")
            logging.info(
                "%-10s %5.1f s wall, %5.1f s processor, peak %5.0f MiB (%.2f models); "
                "copy %.2f s, ratio %.1f",
                method,
                wall,
                processor,
                peak,
                peak * MIB / size,
                copied,
                wall / copied,
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
