"""The page: one HTML file that opens offline."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic
from lt_mia_jax.report import wording
from lt_mia_jax.report.drawing.picture import picture
from lt_mia_jax.report.forgetting.cards import (
    CONTROLS,
    Card,
    Group,
    group_cards,
    group_runs,
    kind_of,
    read_document,
)
from lt_mia_jax.report.forgetting.comparison import view_group
from lt_mia_jax.report.forgetting.page import view_document
from lt_mia_jax.report.membership.data import read_run
from lt_mia_jax.report.membership.views import TOP_TEXTS, view_run


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
    kinds = {str(path): kind_of(path) for path in runs}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{path} ({kind})" for path, kind in kinds.items())
        raise InputError(
            f"runs of two kinds do not share a page: {found}; make one page of each"
        )
    if "unlearning" in kinds.values():
        if len(runs) > 1:
            return _comparison(group_runs(runs))
        view = view_document(read_document(runs[0]))
        return _page("unlearning.html.j2", view=view)
    views = [view_run(read_run(path), index) for index, path in enumerate(runs)]
    return _page("page.html.j2", runs=views, top_texts=TOP_TEXTS)


def render_comparison(
    cards: Mapping[str, Mapping[str, Sequence[Card]]],
    controls: Sequence[str] = CONTROLS,
) -> str:
    """The page that compares methods, from cards that lie in no run directory.

    Args:
      cards: of `unlearning.card.report_card`, one a seed, by title of a section and
        name of a method; `{"failed": WHY}` for a run without result.
      controls: how the names begin that are no methods but models to compare with.

    Raises:
      InputError: no cards, or malformed ones.
    """
    return _comparison(group_cards(cards, controls))


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Render `runs` and write the page to `out`, atomically.

    Raises:
      InputError: as `render`, or `out` cannot be written.
    """
    write_atomic(out, render(runs))


def write_comparison(
    cards: Mapping[str, Mapping[str, Sequence[Card]]],
    out: Path,
    controls: Sequence[str] = CONTROLS,
) -> None:
    """Write the page of `render_comparison`, atomically."""
    write_atomic(out, render_comparison(cards, controls))


def write_picture(
    cards: Mapping[str, Mapping[str, Sequence[Card]]],
    out: Path,
    controls: Sequence[str] = CONTROLS,
) -> None:
    """Write the Pareto plots of `render_comparison` as one SVG file, atomically.

    Raises:
      InputError: no cards, malformed ones, or nothing to plot.
    """
    views = [view_group(g, n) for n, g in enumerate(group_cards(cards, controls))]
    figures = {view.title: view.pareto for view in views if view.pareto}
    if not figures:
        raise InputError("nothing to plot: expected at least two cards in a section")
    write_atomic(out, picture(figures, _asset("page.css")))


def _asset(name: str) -> Markup:
    return Markup((files("lt_mia_jax.report") / name).read_text(encoding="utf-8"))


def _comparison(groups: Sequence[Group]) -> str:
    methods = {e.name for group in groups for e in group.entries if not e.control}
    return _page(
        "comparison.html.j2",
        title=f"Unlearning: {wording.plural(len(methods), 'method')} compared",
        groups=[view_group(group, index) for index, group in enumerate(groups)],
    )


def _page(template: str, **content: Any) -> str:
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
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=_asset("page.css"),
        script=script,
        script_hash=digest,
        **content,
    )
