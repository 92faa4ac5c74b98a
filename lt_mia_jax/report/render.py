"""The page: one HTML file that opens offline."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic
from lt_mia_jax.report import wording
from lt_mia_jax.report.data import read_run
from lt_mia_jax.report.views import TOP_TEXTS, view_run


def render(runs: Sequence[Path]) -> str:
    """A self-contained HTML report on one or more run directories.

    The page depends on the runs alone (no clock, no random seed of its own), so the
    same runs give the same bytes. Everything that comes from the runs is escaped;
    the page may run only the one script it carries, named by its hash.

    Args:
      runs: directories with `summary.json` and `scores.jsonl`.

    Raises:
      InputError: no run, or a run that is incomplete or malformed.
    """
    if not runs:
        raise InputError("no run directories; give at least one to --runs")
    views = [view_run(read_run(path), index) for index, path in enumerate(runs)]
    environment = Environment(
        loader=PackageLoader("lt_mia_jax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "unit": wording.unit,
        "percentage": wording.percentage,
        "bounds": wording.bounds,
        "general": wording.general,
        "p_text": wording.p_text,
        "count": wording.count,
    }
    here = files("lt_mia_jax.report")
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        runs=views,
        top_texts=TOP_TEXTS,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Render `runs` and write the page to `out`, atomically.

    Raises:
      InputError: as `render`, or `out` cannot be written.
    """
    write_atomic(out, render(runs))
