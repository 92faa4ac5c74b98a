"""Peak host memory of loading a checkpoint, beside the size of the model.

python -m experiments.speed.loading_memory --width 1024 --layers 16

Anonymous memory is counted, which leaves the mapped file out: its pages belong to the
system's cache. On CPU the model itself lies in host memory too.
"""

import dataclasses
import logging
import math
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.trees import flatten, unflatten

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Loading:
    """Write a GPT-2-like model, and load it."""

    width: int = 1024
    """Of the residual stream."""

    layers: int = 16
    """Number of blocks."""

    vocab_size: int = 32000
    """Tokens."""


def anonymous() -> float:
    """Anonymous resident memory of this process, in MiB (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / MIB


def peak_of_loading(directory: str) -> float:
    """MiB above the start, sampled every two milliseconds."""
    jnp.zeros(1).block_until_ready()
    before, peak, done = anonymous(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    jax.block_until_ready(load_model(directory)[1])
    done.set()
    sampler.join()
    return peak - before


def main() -> None:
    """Print the three figures."""
    config = tyro.cli(Loading)
    model = gpt2_like(config.vocab_size, config.width, config.layers, 16, 512)
    shapes = flatten(LanguageModel(model).shapes())
    sizes = [4 * math.prod(leaf.shape) / MIB for leaf in shapes.values()]
    with tempfile.TemporaryDirectory() as directory:
        flat = {k: np.full(v.shape, 0.01, np.float32) for k, v in shapes.items()}
        save_pretrained(directory, model, unflatten(flat))
        del flat
        peak = peak_of_loading(directory)
    logging.info(
        "model %.0f MiB, largest stacked leaf %.0f MiB", sum(sizes), max(sizes)
    )
    logging.info(
        "peak while loading %.0f MiB, %.2f of both",
        peak,
        peak / (sum(sizes) + max(sizes)),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
