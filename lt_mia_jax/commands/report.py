"""`lt-mia report`: one HTML page from one or more runs."""

import dataclasses
import logging
from pathlib import Path

from lt_mia_jax.outputs import Writing, WritingFlags, replacing

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Make one self-contained HTML page from the folders of finished runs.

    A run is a folder that audit, evaluate or demo wrote (summary.json, scores.jsonl),
    or unlearn (card.json). Several unlearning runs are compared with each other. The
    page opens offline and prints well.
    """

    runs: tuple[Path, ...]
    """Folders of finished runs."""
    out: Path
    """The HTML file to write."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: Report) -> None:
    """Write the page."""
    from lt_mia_jax.report.rendering import files_of, is_page, write_report

    reads = [path for run in config.runs for path in files_of(run)]
    with replacing(config.out, reads, is_page, overwrite=config.writing.overwrite):
        write_report(config.runs, config.out)
    log.info("wrote %s", config.out)
