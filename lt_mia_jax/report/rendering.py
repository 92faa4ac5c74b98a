"""The page: one HTML file that opens offline."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic
from lt_mia_jax.report.drawing.pareto import picture
from lt_mia_jax.report.forgetting.comparison import comparison_page, pareto
from lt_mia_jax.report.forgetting.page import forgetting_page
from lt_mia_jax.report.forgetting.runs import (
    CONTROLS,
    Sections,
    group_cards,
    group_runs,
    is_run,
)
from lt_mia_jax.report.fragments import asset, environment
from lt_mia_jax.report.membership.page import membership_page
from lt_mia_jax.report.membership.run import SCORES, SUMMARY, read_run
from lt_mia_jax.report.panels import Page
from lt_mia_jax.verification import storage


def render(runs: Sequence[Path]) -> str:
    """A self-contained HTML report on one or more run directories.

    The page depends on the runs alone (no clock, no random seed of its own), so the
    same runs give the same bytes. Everything that comes from the runs is escaped;
    the page may run only the one script it carries, named by its hash.

    Args:
      runs: directories with `summary.json` and `scores.jsonl`, or directories with the
        `card.json` of an unlearning run; one of these has a page of its own, several
        are compared.

    Raises:
      InputError: no run, runs of both kinds, or a run that is incomplete or malformed.
    """
    if not runs:
        raise InputError("no run directories; give at least one to --runs")
    kinds = {str(path): "unlearning" if is_run(path) else "membership" for path in runs}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{path} ({kind})" for path, kind in kinds.items())
        raise InputError(
            f"runs of two kinds do not share a page: {found}; make one page of each"
        )
    if "membership" in kinds.values():
        return _html(membership_page([read_run(path) for path in runs]))
    if len(runs) > 1:
        return _html(comparison_page(group_runs(runs)))
    return _html(forgetting_page(storage.read_run(runs[0])))


def render_comparison(cards: Sections, controls: Sequence[str] = CONTROLS) -> str:
    """The page that compares methods, from cards that lie in no run directory.

    A card `{"failed": WHY}` stands for a run without result. Names that begin as one of
    `controls` are no methods but models to compare with.

    Raises:
      InputError: no cards, or malformed ones.
    """
    return _html(comparison_page(group_cards(cards, controls)))


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Render `runs` and write the page to `out`, atomically.

    Pages of unlearning show texts: only their owner can read them.

    Raises:
      InputError: as `render`, or `out` cannot be written.
    """
    write_atomic(out, render(runs), private=any(map(is_run, runs)))


def is_page(path: Path) -> bool:
    """Whether a file is a page of this package."""
    return path.is_file() and b'<p class="kicker">LT-MIA' in path.read_bytes()


def files_of(run: Path) -> tuple[Path, ...]:
    """What a page reads of a run."""
    return (run, *(run / name for name in (SUMMARY, SCORES, storage.CARD)))


def write_comparison(
    cards: Sections, out: Path, controls: Sequence[str] = CONTROLS
) -> None:
    """Write the page of `render_comparison`, atomically."""
    write_atomic(out, render_comparison(cards, controls))


def write_picture(
    cards: Sections, out: Path, controls: Sequence[str] = CONTROLS
) -> None:
    """Write the Pareto plots of `render_comparison` as one SVG file, atomically.

    Raises:
      InputError: no cards, malformed ones, or nothing to plot.
    """
    plots = {group.title: pareto(group) for group in group_cards(cards, controls)}
    drawn = {title: plot for title, plot in plots.items() if plot}
    if not drawn:
        raise InputError("nothing to plot: expected at least two cards in a section")
    write_atomic(out, picture(drawn, asset("page/page.css")))


def _html(page: Page) -> str:
    script = asset("page/page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        page=page, style=asset("page/page.css"), script=script, script_hash=digest
    )
