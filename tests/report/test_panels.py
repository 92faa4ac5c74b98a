"""What a new panel and a new measure cost: a function or a field, and a row."""

import re

import pytest
from markupsafe import Markup
from oracle_cards import card, document, write
from oracle_report import synthesise_run
from page_tables import Tables

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.report import render, render_comparison
from lt_mia_jax.report.forgetting import comparison, metrics
from lt_mia_jax.report.forgetting import page as forgetting
from lt_mia_jax.report.membership import page as membership
from lt_mia_jax.report.panels import Panel, Place, article


def longest(run, place):
    """A panel of audits, made of a run."""
    longest = max(run.texts.n_tokens)
    return Markup('<p id="{}">{}</p>').format(place.id("longest"), f"{longest} < all")


def asked(run, place):
    """A panel of unlearning runs."""
    return f"{len(run.verification.examples)} questions & more at {place.id('asked')}"


def biggest(group, place):
    """A panel of comparisons."""
    return f"{len(group.entries)} results at {place.id('biggest')}"


@pytest.fixture
def audits(tmp_path):
    return [synthesise_run(tmp_path / str(n), n=20 + n) for n in range(2)]


def test_a_panel_of_audits_is_a_function_and_a_row(audits, monkeypatch):
    row = Panel("Longest text", longest, lambda run: len(run.texts.ids) > 9, "Long")
    monkeypatch.setattr(membership, "PANELS", (*membership.PANELS, row))
    page = render(audits[:1])
    assert '<a href="#run-1-long">Long</a>' in page
    assert re.search(r'<section id="run-1-long">\s*<h2>Longest text</h2>', page)
    assert "128 &lt; all</p>" in page
    both = render(audits)
    assert both.count("<h3>Longest text</h3>") == 2
    assert both.count('id="run-2-longest"') == 1
    hidden = Panel("Longest text", longest, lambda run: len(run.texts.ids) < 9)
    monkeypatch.setattr(membership, "PANELS", (*membership.PANELS[:-1], hidden))
    assert "Longest text" not in render(audits)


def test_a_panel_of_unlearning_is_a_function_and_a_row(tmp_path, monkeypatch):
    run = write(tmp_path / "run", document())
    row = Panel("How many", asked, name="Asked")
    monkeypatch.setattr(forgetting, "PANELS", (row, *forgetting.PANELS))
    page = render([run])
    assert '<a href="#asked">Asked</a>' in page
    assert "6 questions &amp; more at asked" in page
    assert page.index("<h2>How many</h2>") < page.index('class="verdict"')
    row = Panel("How many", biggest, headed=False)
    monkeypatch.setattr(comparison, "PANELS", (*comparison.PANELS, row))
    page = render([run, run])
    assert '<section aria-label="How many">' in page
    assert "4 results at group-1-biggest" in page


def test_a_measure_is_a_field_and_a_row(tmp_path, monkeypatch):
    row = metrics.Metric("n", "Tenth", "of the count", "low", read=tenth)
    monkeypatch.setitem(metrics.METRICS, "kept", (*metrics.METRICS["kept"], row))
    content = document()
    for n, found in zip((20, 30, 40), content["models"].values(), strict=True):
        found["n_forget"] = n
    page = render([write(tmp_path / "run", content)])
    tables = [table for found in Tables(page).tables.values() for table in found]
    [shown] = [r for t in tables for r in t if r[0][0] == "Tenthof the count"]
    assert [float(cell[1]) for cell in shown[1:]] == [2, 3, 4]
    page = render_comparison({"a": {"npo": [card(n=70)], "rmu": [card(n=50)]}})
    [_, *rows] = Tables(page).tables["The"][0]
    assert [float(row[-1][1]) for row in rows] != [7, 5]
    place = [cell[0] for cell in Tables(page).tables["The"][0][0]].index("Tenth")
    assert [float(row[place][1]) for row in rows] == [7, 5]
    assert 'title="of the count; good: low"' in page


def tenth(card):
    """A measure that stands in no field yet."""
    return Estimate(card.n_forget / 10)


def test_articles_keep_the_order_of_rows():
    rows = [
        Panel(f"number {n}", lambda data, _, n=n: data * n, lambda _, n=n: n != 2, "n")
        for n in range(4)
    ]
    found = article(rows, "x", Place("here", 4), "title")
    assert [each.body for each in found.sections] == ["", "x", "xxx"]
    assert [each.anchor for each in found.sections] == ["here-n"] * 3
    assert (found.title, found.level) == ("title", 4)
