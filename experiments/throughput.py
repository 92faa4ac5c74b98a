"""Sequences per second of extraction, and its cost over the two forward passes.

python experiments/throughput.py --size distilgpt2

"Two forwards" is the floor: target and reference with their heads, logits reduced to
their maximum. Both programs run on the same random weights and tokens; they take turns,
and the fastest pass of each counts, since other programs can only slow a pass down.
Bytes and FLOPs are the compiler's own estimates, in which a loop's body counts once.
"""

import dataclasses
import gc
import logging
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import tyro

from lt_mia_jax.cli import keep_freed_memory, use_all_cores
from lt_mia_jax.executor import make_executor
from lt_mia_jax.features.program import ExtractConfig, Extraction, batch_statistics
from lt_mia_jax.models import LanguageModel, gpt2_like

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "layers": 4, "heads": 4},
    "distilgpt2": {"width": 768, "layers": 6, "heads": 12},
    "125m": {"width": 768, "layers": 12, "heads": 12},
    "350m": {"width": 1024, "layers": 24, "heads": 16},
}
"""Shapes of GPT-2-like models."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Measure extraction against its two forward passes."""

    size: Literal["tiny", "distilgpt2", "125m", "350m"] = "distilgpt2"
    """Shape of both models."""

    vocabulary: int = 50257
    """Vocabulary entries."""

    batch_size: int = 16
    """Texts in a batch."""

    length: int = 128
    """Tokens a text."""

    k: int = 20
    """Length of the LT-MIA lists."""

    vocab_chunk: int | None = None
    """Vocabulary entries reduced at a time; None is all."""

    rounds: int = 5
    """How often the two programs take turns."""


@partial(jax.jit, static_argnames="model")
def two_forwards(target: Any, reference: Any, ids: Any, *, model: Any) -> Any:
    """The largest logit of every step under both models."""
    return [model.apply(params, ids).max(-1) for params in (target, reference)]


def programs(config: Throughput) -> dict[str, Any]:
    """Both programs, compiled, with their arguments bound."""
    model_config = gpt2_like(
        config.vocabulary, context=config.length, **SIZES[config.size]
    )
    model, executor = LanguageModel(model_config), make_executor()
    params = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    params = [executor.place(p) for p in params]
    shape = (config.batch_size, config.length)
    host = np.random.default_rng(0).integers(0, config.vocabulary, shape, np.int32)
    ids, mask = executor.place_batch((host, np.ones_like(host)))
    settings = ExtractConfig(k=config.k, vocab_chunk=config.vocab_chunk)
    program = Extraction(target=model, reference=model, config=settings, half=True)
    lowered = batch_statistics.lower(
        *params, ids, mask, program=program, mesh=executor.mesh
    )
    extract = lowered.compile()
    floor = two_forwards.lower(*params, ids, model=model).compile()
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    logging.info("weights of both models: %.0f MiB", weights / 2**20)
    return {
        "two forwards": (floor, (*params, ids)),
        "extraction": (extract, (*params, ids, mask)),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Of one pass."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    """Print one Markdown row a program, and the overhead."""
    config = tyro.cli(Throughput, description=__doc__)
    use_all_cores()
    keep_freed_memory()
    runs = programs(config)
    gc.collect()
    fastest = dict.fromkeys(runs, float("inf"))
    for round_ in range(config.rounds + 1):
        for name, (program, arguments) in runs.items():
            taken = seconds(partial(program, *arguments))
            if round_:  # the first one warms up
                fastest[name] = min(fastest[name], taken)
                logging.info("%s: %.0f ms", name, taken * 1e3)
    sys.stdout.write(
        "| program | sequences/s | ms | GFLOP, loops once | temporaries, MiB |\n"
    )
    sys.stdout.write("|---|---|---|---|---|\n")
    for name, (program, _) in runs.items():
        cost, memory = program.cost_analysis(), program.memory_analysis()
        flops = f"{cost['flops'] / 1e9:,.0f}" if cost and "flops" in cost else "?"
        temporary = f"{memory.temp_size_in_bytes / 2**20:,.0f}" if memory else "?"
        rate = config.batch_size / fastest[name]
        cells = [name, f"{rate:.2f}", f"{fastest[name] * 1e3:,.0f}", flops, temporary]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    overhead = fastest["extraction"] / fastest["two forwards"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"\noverhead {overhead:.2f}, peak resident {peak:,.0f} MiB\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
