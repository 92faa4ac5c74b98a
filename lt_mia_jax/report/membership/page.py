"""The page of audits and evaluations.

A new panel is one function and one row of `PANELS`.
"""

import json
from collections.abc import Sequence

from markupsafe import Markup

from lt_mia_jax.report.fragments import asset, show
from lt_mia_jax.report.membership import dataset, texts
from lt_mia_jax.report.membership.attacks import combination, combinations
from lt_mia_jax.report.membership.findings import findings
from lt_mia_jax.report.membership.headline import headline
from lt_mia_jax.report.membership.run import Run
from lt_mia_jax.report.panels import (
    Article,
    Page,
    Panel,
    Place,
    Section,
    article,
    contents,
)

NO_VERDICT = "This run states no verdict."


def _several(run: Run) -> bool:
    return len(run.summary.combinations) > 1


def _record(run: Run, place: Place) -> Markup:
    del place
    found = run.summary
    pairs = {"Fingerprints (SHA-256)": found.fingerprints, "Versions": found.versions}
    config = json.dumps(found.config, indent=2, ensure_ascii=False)
    return show.record(found.command, found.notes, pairs, config)


def _only(run: Run, place: Place) -> Markup:
    return combination(run, 0, Place(place.id("1"), place.level))


PANELS: tuple[Panel[Run], ...] = (
    Panel(
        "Verdict",
        lambda run, _: show.verdict(run.summary.verdict or [NO_VERDICT], 5),
        name="Verdict",
        headed=False,
    ),
    Panel("Headline", lambda run, _: show.tiles([*headline(run)]), headed=False),
    Panel(
        "What speaks for and against it", lambda run, _: show.findings(findings(run))
    ),
    Panel("Combinations", combinations, _several, "Results"),
    Panel(
        "Attacks",
        _only,
        lambda run: not _several(run) and bool(run.summary.combinations[0].attacks),
        "Results",
    ),
    Panel(
        "Scores",
        _only,
        lambda run: not _several(run) and not run.summary.combinations[0].attacks,
        "Results",
    ),
    Panel(
        "The texts as a whole",
        dataset.verdict,
        lambda run: run.summary.dataset is not None,
    ),
    Panel(
        "Calibration of the p-values",
        dataset.calibration,
        dataset.has_calibration,
        "Calibration",
    ),
    Panel("Highest-scored texts", texts.highest, name="Texts"),
    Panel("Flags", texts.flags),
    Panel("Record of the run", _record, name="Record"),
)


def membership_page(runs: Sequence[Run]) -> Page:
    """One run, or several below one another."""
    kicker, reading = "LT-MIA membership report", asset("membership/reading.html")
    if len(runs) == 1:
        [run] = runs
        only = article(PANELS, run, Place("run-1", 2))
        kicker += f" \N{MIDDLE DOT} {run.summary.kind}"
        return Page(kicker, run.summary.title, [only], contents(only), reading)
    articles = [
        article(PANELS, run, Place(f"run-{number}", 3), run.summary.title)
        for number, run in enumerate(runs, start=1)
    ]
    glance = [
        (each.anchor, each.title, next(iter(run.summary.verdict), NO_VERDICT))
        for each, run in zip(articles, runs, strict=True)
    ]
    title = "Runs at a glance"
    section = Section(title, show.glance(glance), "", "", headed=False)
    articles.insert(0, Article("glance", title, [section], 3, css=""))
    heading = f"Membership report on {len(runs)} runs"
    return Page(kicker, heading, articles, [("glance", title)], reading)
