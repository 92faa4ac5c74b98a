"""`lt-mia report`: one HTML page from one or more runs."""

import dataclasses
import logging
from pathlib import Path

from lt_mia_jax.report import write_report

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Make one self-contained HTML page from the folders of finished runs.

    A run is a folder with summary.json and scores.jsonl, as audit, evaluate and demo
    write them, or with card.json, as unlearn does; several of unlearn are compared. The
    page opens offline and prints well.
    """

    runs: tuple[Path, ...]
    """Folders of finished runs."""

    out: Path
    """The HTML file to write."""


def run(config: Report) -> None:
    """Write the page.

    Raises:
      InputError: a folder is not a finished run.
    """
    write_report(config.runs, config.out)
    log.info("wrote %s", config.out)
