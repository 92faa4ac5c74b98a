"""Peak resident memory of extraction against the number of texts.

python -m experiments.speed.extraction_memory --texts 1000 8000

Each size runs in a process of its own, on random tokens and two random models, and
reports the largest resident set that the operating system saw.
"""

import dataclasses
import json
import logging
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import tyro

from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.features.extract import ExtractConfig, extract
from lt_mia_jax.models import LanguageModel, gpt2_like


@dataclasses.dataclass(frozen=True)
class Memory:
    """Measure peak memory of extraction at several corpus sizes."""

    texts: tuple[int, ...] = (1000, 8000)
    """Numbers of texts."""

    length: int = 128
    """Tokens a text."""

    vocabulary: int = 2048
    """Vocabulary entries."""

    batch_size: int = 16
    """Texts in one forward pass."""

    child: bool = False
    """Run the one size here and print its figures as JSON."""


def measure(config: Memory) -> dict[str, float]:
    """Extract once; texts, peak resident MiB and bytes on disk a text."""
    (n,) = config.texts
    rng = np.random.default_rng(0)
    shape = (n, config.length)
    encoded = Encoded(
        rng.integers(0, config.vocabulary, shape, dtype=np.int32),
        np.ones(shape, np.uint8),
        np.zeros(n, bool),
        np.zeros(n, bool),
    )
    model = LanguageModel(
        gpt2_like(config.vocabulary, width=32, layers=1, heads=2, context=config.length)
    )
    params = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        extract(
            model,
            params[0],
            model,
            params[1],
            encoded,
            ids=[str(i) for i in range(n)],
            labels=np.arange(n) % 2,
            texts=["x"] * n,
            out_dir=Path(folder) / "store",
            config=ExtractConfig(batch_size=config.batch_size),
        )
        stored = sum(
            path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"texts": n, "peak_mib": peak, "bytes_per_text": stored / n}


def main() -> None:
    """Print one line a size and the growth from the smallest to the largest."""
    config = tyro.cli(Memory)
    if config.child:
        sys.stdout.write(json.dumps(measure(config)) + "\n")
        return
    rows = []
    for n in config.texts:
        words = [sys.executable, __file__, "--child", "--texts", str(n)]
        for name in ("length", "vocabulary", "batch_size"):
            words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        logging.info(
            "%6d texts: peak %.0f MiB, %.0f bytes on disk a text",
            *rows[-1].values(),
        )
    logging.info("ratio of peaks: %.3f", rows[-1]["peak_mib"] / rows[0]["peak_mib"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
