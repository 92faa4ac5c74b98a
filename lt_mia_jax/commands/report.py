"""`lt-mia report`: one HTML page from one or more runs."""

import dataclasses
import logging
from pathlib import Path

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


def run(config: Report) -> None:
    """Write the page."""
    from lt_mia_jax.report import write_report

    write_report(config.runs, config.out)
    log.info("wrote %s", config.out)
