"""The page of audits and evaluations.

A new panel is one function and one row of `PANELS`.
"""

import json
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report.drawing.calibration import calibration_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.fragments import asset, show
from lt_mia_jax.report.membership import texts
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
from lt_mia_jax.report.wording import NBSP, count, general, p_text

NO_VERDICT = "This run states no verdict."


def _several(run: Run) -> bool:
    return len(run.summary.combinations) > 1


def _record(run: Run, _: Place) -> Markup:
    found = run.summary
    pairs = {"Fingerprints (SHA-256)": found.fingerprints, "Versions": found.versions}
    config = json.dumps(found.config, indent=2, ensure_ascii=False)
    return show.record(found.command, found.notes, pairs, config)


def _only(run: Run, place: Place) -> Markup:
    return combination(run, 0, Place(place.id("1"), place.level))


def _dataset(run: Run, _: Place) -> Markup:
    """The test of all texts together."""
    found = run.summary.dataset
    assert found is not None
    decided = f"{p_text(found.p_value)} (decided at {general(found.alpha)})"
    size = found.effect
    value, low, high = (general(end, 3) for end in (size.value, size.low, size.high))
    return show.facts(
        [
            ("Decision", found.decision),
            ("p-value", decided),
            ("Suspect texts", count(found.n_suspect)),
            ("Non-members", count(found.n_nonmembers)),
            ("Method", found.method),
            ("Effect size", f"{value} [{low}, {high}]"),
        ]
    )


def _calibrated(run: Run) -> bool:
    """Whether there are p-values to draw."""
    found = run.summary.calibration
    return found is not None and bool(found.p_values or found.nonmember_p_values)


def _calibration(run: Run, _: Place) -> Markup:
    """Distribution of the p-values against what they promise."""
    found = run.summary.calibration
    assert found is not None
    audited = np.asarray(found.p_values, float)
    held_out = np.asarray(found.nonmember_p_values, float)
    key = []
    if len(audited):
        key = [("curve member", f"texts under audit ({count(len(audited))})")]
    if len(held_out):
        name = f"held-out non-members ({count(len(held_out))})"
        key += [("curve nonmember", name), ("ks", f"95{NBSP}% band")]
    p = f" (Kolmogorov-Smirnov p = {p_text(found.ks_p)})"
    paragraphs = (
        "If the p-values mean what they say, those of texts the model has never seen "
        "are uniform: their curve follows the diagonal and stays in the band. Here one "
        "half of the known non-members was scored against the other half"
        f"{'' if found.ks_p is None else p}.",
        "A curve of the audited texts above the diagonal means more small p-values "
        "than chance gives, which is what training on some of them would cause.",
        "The p-value of a text is (1 + the number of non-members scored at least as "
        f"high) divided by (n + 1), with n = {count(found.n_calibration)}. The band is "
        "that of the two-sample Kolmogorov-Smirnov statistic, since both halves are "
        "finite.",
    )
    drawn = calibration_figure(held_out, audited)
    return show.beside(Figure(drawn, key, "", "", tall=True), paragraphs)


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
        _dataset,
        lambda run: run.summary.dataset is not None,
    ),
    Panel(
        "Calibration of the p-values",
        _calibration,
        _calibrated,
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
