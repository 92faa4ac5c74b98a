"""Sequences per second of extraction, beside its two forwards and the reference.

python -m experiments.speed.throughput --sizes distilgpt2 125m --peer CHECKOUT --out DIR

"Two forwards" is the floor: target and reference with their heads, logits reduced to
their maximum. "Extraction" is the compiled program that fills a store, "features" the
way from token ids to full feature vectors in NumPy, which is what the reference
returns. All run on the same random weights and tokens; they take turns, and the
fastest pass of each counts, since other programs can only slow a pass down.

With --out, a size that is already measured is not measured again, and further sizes
join it. --markdown DIR prints the tables and --plot-only DIR draws the figure, both
without measuring.
"""

import contextlib
import dataclasses
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments.speed import agreement, peer, throughput_results
from experiments.speed.compiled import Figures, describe
from experiments.speed.throughput_results import Measured, Record
from lt_mia_jax.checkpoints import save_pretrained
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, Kind, make_executor
from lt_mia_jax.features.program import ExtractConfig, Extraction
from lt_mia_jax.features.scorer import StatisticsExtractor
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.process import exit_code, use_machine

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "layers": 4, "heads": 4},
    "distilgpt2": {"width": 768, "layers": 6, "heads": 12},
    "125m": {"width": 768, "layers": 12, "heads": 12},
    "350m": {"width": 1024, "layers": 24, "heads": 16},
}
"""Shapes of GPT-2-like models."""

Size = Literal["tiny", "distilgpt2", "125m", "350m"]


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Measure extraction against its two forward passes and the reference."""

    sizes: Annotated[tuple[Size, ...], tyro.conf.arg(aliases=("--size",))] = (
        "distilgpt2",
    )
    """Shapes of both models."""

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

    executor: Kind = "jit"
    """How our side runs on the devices."""

    rounds: int = 5
    """How often the programs take turns."""

    peer: Path | None = None
    """A checkout of JetBrains-Research/learned-mia to measure as well."""

    peer_threads: int = 2
    """Threads of PyTorch; our side takes every core that the process may use."""

    out: Path | None = None
    """Keep results.json and the figure here."""

    markdown: Path | None = None
    """Print the tables of the results in this folder, and measure nothing."""

    plot_only: Path | None = None
    """Draw the figure of the results in this folder, and measure nothing."""

    figure: Path = Path("docs/throughput.svg")
    """Where --plot-only draws."""


class Workload(NamedTuple):
    """Two models and one batch, on the devices."""

    model: LanguageModel
    params: list[Any]
    ids: np.ndarray
    """On the host, `"B T"`."""
    config: ExtractConfig
    executor: Executor

    @property
    def host(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask."""
        return self.ids, np.ones_like(self.ids)

    @property
    def batch(self) -> tuple[Any, Any]:
        """The same on the devices."""
        return self.executor.place_rows(self.host)


class Program(NamedTuple):
    """One thing to time, and what its compiled program says of itself."""

    run: Callable[[], Any]
    figures: Figures | None = None


def workload(config: Throughput, size: Size) -> Workload:
    """Random models and tokens, the same for the same settings."""
    shape = gpt2_like(config.vocabulary, context=config.length, **SIZES[size])
    model, executor = LanguageModel(shape), make_executor(config.executor)
    params = [
        executor.init_sharded(model.init, jax.random.key(seed)) for seed in (0, 1)
    ]
    tokens = (config.batch_size, config.length)
    ids = np.random.default_rng(0).integers(0, config.vocabulary, tokens, np.int32)
    extract = ExtractConfig(
        k=config.k, batch_size=config.batch_size, vocab_chunk=config.vocab_chunk
    )
    return Workload(model, params, ids, extract, executor)


@partial(jax.jit, static_argnames="model")
def two_forwards(target: Any, reference: Any, ids: Any, *, model: Any) -> Any:
    """The largest logit of every step under both models."""
    return [model.apply(params, ids).max(-1) for params in (target, reference)]


@partial(jax.jit, static_argnames="model")
def both_logits(target: Any, reference: Any, ids: Any, *, model: Any) -> Any:
    """What `agreement.compare` sorts."""
    return [model.apply(params, ids) for params in (target, reference)]


def our_programs(work: Workload) -> dict[str, Program]:
    """Everything of ours that is timed."""
    ids, _ = work.batch
    floor = two_forwards.lower(*work.params, ids, model=work.model).compile()
    program = Extraction(
        target=work.model, reference=work.model, config=work.config, half=True
    )
    rows = work.executor.place_batch(work.host)
    extract = program.on(work.executor).lower(*work.params, *rows).compile()
    return {
        "two forwards": Program(partial(floor, *work.params, ids), describe(floor)),
        "extraction": Program(partial(extract, *work.params, *rows), describe(extract)),
    }


def our_features(work: Workload) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Features and mask in NumPy, from token ids."""
    target, reference = work.params
    models = (work.model, target, work.model, reference)
    scorer = StatisticsExtractor(*models, work.config, work.executor)
    texts: Any = SimpleNamespace(
        input_ids=work.ids, attention_mask=np.ones_like(work.ids)
    )

    def run() -> tuple[np.ndarray, np.ndarray]:
        scored = scorer(texts)
        assert scored.features is not None
        return scored.features, scored.mask

    return run


@contextlib.contextmanager
def reference_process(config: Throughput, work: Workload) -> Iterator[peer.Peer]:
    """The reference with our weights and tokens."""
    assert config.peer is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, params in zip(peer.MODELS, work.params, strict=True):
            save_pretrained(folder / model, work.model.config, params)
        np.savez(folder / peer.BATCH, input_ids=work.ids)
        other = peer.Peer(config.peer, folder, k=config.k, threads=config.peer_threads)
        try:
            yield other
        finally:
            other.close()


def seconds(run: Callable[[], Any]) -> float:
    """Of one pass."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def take_turns(
    rounds: int, timed: dict[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """Seconds of each pass of each program; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(rounds + 1):
        for name, measure in timed.items():
            found = measure()
            if round_:
                taken[name].append(found)
                logging.info("%s: %.0f ms", name, found * 1e3)
    return taken


def measure(config: Throughput, size: Size) -> Record:
    """The results of one size."""
    work = workload(config, size)
    ours = our_programs(work)
    settings = throughput_results.settings_of(config, size)
    if config.peer is None:
        gc.collect()
        timed = {name: partial(seconds, p.run) for name, p in ours.items()}
        taken = take_turns(config.rounds, timed)
        return Record(settings, machine(work), measured(taken, ours))
    features = our_features(work)
    ours["features"] = Program(features)
    with reference_process(config, work) as other:
        gc.collect()
        timed = {name: partial(seconds, p.run) for name, p in ours.items()}
        for name in ("two forwards", "extraction"):
            timed[f"reference {name}"] = partial(other.seconds, name)
        taken = take_turns(config.rounds, timed)
        theirs, their_mask = other.features()
        described = other.settings
    mine, mask = features()
    if (mask != their_mask).any():
        raise InputError(
            f"the reference scores {their_mask.sum()} steps of the batch and we "
            f"{mask.sum()}; expected the same: is {config.peer} an unchanged checkout?"
        )
    logits = both_logits(*work.params, work.batch[0], model=work.model)
    found = agreement.compare(mine, theirs, mask, *map(np.asarray, logits))
    return Record(settings, machine(work), measured(taken, ours), described, found)


def measured(
    taken: dict[str, list[float]], ours: dict[str, Program]
) -> dict[str, Measured]:
    """Seconds and figures together."""
    figures = {name: program.figures for name, program in ours.items()}
    return {name: Measured(s, figures.get(name)) for name, s in taken.items()}


def machine(work: Workload) -> dict[str, Any]:
    """What our side ran on."""
    (dtype,) = {str(leaf.dtype) for leaf in jax.tree.leaves(work.params)}
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": work.executor.mesh.size,
        "dtype": dtype,
        "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(work.params)),
    }


def run(config: Throughput) -> None:
    """Measure what is not measured yet, then print the tables."""
    for folder in filter(None, (config.markdown, config.plot_only)):
        records = throughput_results.load(folder, must_exist=True)
        if folder == config.markdown:
            sys.stdout.write(throughput_results.tables(records))
        if folder == config.plot_only:
            throughput_results.draw(records, config.figure)
    if config.markdown or config.plot_only:
        return
    if config.peer is not None:
        peer.check(config.peer)  # before anything that takes long
    use_machine()
    records = throughput_results.load(config.out)
    chosen = []
    for size in config.sizes:
        settings = throughput_results.settings_of(config, size)
        record = throughput_results.find(records, settings)
        if record is None or (config.peer is not None and record.reference is None):
            record = measure(config, size)
            records = throughput_results.replace(records, record)
            if config.out is not None:
                throughput_results.save(config.out, records)
        else:
            logging.info("%s: measured before, read from %s", size, config.out)
        chosen.append(record)
    sys.stdout.write(throughput_results.tables(chosen))


def main() -> int:
    """Run; 2 on bad input, explained in one line."""
    config = tyro.cli(Throughput, description=__doc__)
    return exit_code(lambda: run(config), "throughput")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    sys.exit(main())
