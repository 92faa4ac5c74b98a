"""`lt-mia benchmark`: published unlearning benchmarks as files for `lt-mia unlearn`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lt_mia_jax.data.benchmark_catalog import BENCHMARKS
from lt_mia_jax.errors import between
from lt_mia_jax.outputs import Output, Writing, WritingFlags

WRITES = Output(("*.jsonl", "run.json", "config.json"), fixed=("name",), resumes=False)
_KNOWN = "; ".join(f"{b.name}: {b.title}, {b.source}" for b in BENCHMARKS.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Write the parts of a published benchmark as JSONL files for `lt-mia unlearn`.

    One file per part, such as forget10.jsonl and retain90.jsonl of TOFU. The
    same benchmark may be written again, or other parts of it.
    """

    name: Annotated[
        str,
        tyro.conf.arg(
            constructor_factory=lambda: Literal[tuple(BENCHMARKS)],  # type: ignore
            help=f"Which benchmark. {_KNOWN}.",
        ),
    ]

    out: Path
    """Output folder."""
    parts: tuple[str, ...] = ()
    """Parts to write; default: all. An unknown part lists the known ones."""
    local: Path | None = None
    """A copy of the benchmark's repository with Parquet or JSON files; default: the
    Hugging Face hub."""
    limit: Annotated[int | None, between(1, 10**9)] = None
    """Maximum rows of each part."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: Benchmark) -> None:
    """Write the files."""
    from lt_mia_jax.data.benchmarks import write_benchmark

    write_benchmark(
        BENCHMARKS[config.name],
        config.out,
        parts=config.parts,
        local=config.local,
        limit=config.limit,
    )
