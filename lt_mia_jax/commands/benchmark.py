"""`lt-mia benchmark`: published unlearning benchmarks as files for `lt-mia unlearn`."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

from lt_mia_jax.data.benchmark_catalog import BENCHMARKS
from lt_mia_jax.data.benchmarks import load_benchmark
from lt_mia_jax.data.questions import write_questions
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

Name = Literal["tofu", "muse_news", "muse_books", "wmdp", "rwku"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Write the parts of TOFU, MUSE, WMDP or RWKU as JSONL files for `lt-mia unlearn`.

    One file a part, such as forget10.jsonl and retain90.jsonl of TOFU; files that are
    there are written anew.
    """

    name: Name
    """Which benchmark."""

    out: Path
    """Folder of the files."""

    parts: tuple[str, ...] = ()
    """Parts to write; all without it. A part that does not exist names those that
    do."""

    local: Path | None = None
    """A copy of the benchmark's repository, with Parquet or JSON files; without it the
    Hugging Face hub is asked."""

    limit: int | None = None
    """Rows of each part at most."""


def run(config: Benchmark) -> None:
    """Write the files.

    Raises:
      InputError: no such part, or one that cannot be read.
    """
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit {config.limit}: expected at least one row")
    benchmark = BENCHMARKS[config.name]
    wanted = config.parts or tuple(part.name for part in benchmark.parts)
    for name in wanted:
        benchmark.part(name)
    for name in wanted:
        file = config.out / f"{name}.jsonl"
        rows = load_benchmark(benchmark, name, local=config.local, limit=config.limit)
        write_questions(file, rows)
        log.info("wrote %s (%d rows)", file, len(rows))
