"""The page in a real browser: no request, no complaint, sorting, narrow screens."""

import json

import pytest
from headless_browser import Page, find_chromium
from oracle_report import synthesise_run

from lt_mia_jax.report import write_report

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in PATH"),
    # The browser is another process; its pipes are closed by the fixture.
    pytest.mark.timeout(120),
]
FIRST_TABLE = "document.querySelector('table.attacks')"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    base = tmp_path_factory.mktemp("report")
    runs = [
        synthesise_run(base / "one", n=120),
        synthesise_run(base / "two", n=60, labeled=False, calibrated=True),
        synthesise_run(base / "three", n=60, combinations=("gpt2 on a", "rwkv on b")),
    ]
    stretch(runs[1])
    write_report(runs, base / "report.html")
    return base / "report.html"


def stretch(run):
    """Names of one run become long words without a place to break."""
    long = "w" * 300
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"title": long, "verdict": [long] * 2, "command": long, "notes": [long]}
    summary |= {"versions": {long: long}, "config": {long: long}}
    summary["dataset"] |= {"method": long}
    for key in ("target", "reference", "corpus"):
        summary["combinations"][0][key] = long
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [json.loads(line) for line in (run / "scores.jsonl").open()]
    for number, row in enumerate(rows):
        row |= {"id": f"{long}{number}", "flags": [long]}
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    assert CHROMIUM is not None
    with Page(CHROMIUM, tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


def column(page, index):
    return page.evaluate(
        f"[...{FIRST_TABLE}.tBodies[0].rows].map(r => r.cells[{index}].dataset.value)"
    )


def click(page, index):
    page.evaluate(
        f"{FIRST_TABLE}.tHead.rows[0].cells[{index}].querySelector('button').click()"
    )


def aria_sort(page):
    return page.evaluate(
        f"[...{FIRST_TABLE}.tHead.rows[0].cells].map(c => c.getAttribute('aria-sort'))"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_is_fetched_and_nothing_overflows(page, report, width, dark):
    page.open(report, width=width, dark=dark)
    shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert shown == [width, width]
    assert page.complaints() == []
    assert page.requests() == [report.resolve().as_uri()]


def test_the_policy_stops_a_foreign_script(page, report):
    page.open(report)
    page.evaluate(
        "{const s = document.createElement('script'); s.text = 'window.hit = 1';"
        "document.body.append(s)}"
    )
    assert page.evaluate("window.hit === undefined")


def test_headers_sort(page, report):
    page.open(report)
    start = column(page, 1)
    assert start == sorted(start, key=float, reverse=True)
    controls = page.evaluate(f"{FIRST_TABLE}.tBodies[1].textContent")

    click(page, 1)
    assert column(page, 1) == start[::-1]
    assert aria_sort(page)[:3] == [None, "ascending", None]

    click(page, 2)
    rates = column(page, 2)
    assert [r for r in rates if r] == sorted(filter(None, rates), key=float)[::-1]
    assert aria_sort(page)[:3] == [None, None, "descending"]

    click(page, 0)
    names = page.evaluate(
        f"[...{FIRST_TABLE}.tBodies[0].rows].map(r => r.cells[0].textContent.trim())"
    )
    assert names == sorted(names, key=str.casefold)
    assert aria_sort(page)[0] == "ascending"
    assert page.evaluate(f"{FIRST_TABLE}.tBodies[1].textContent") == controls


def test_headers_sort_by_keyboard(page, report):
    page.open(report)
    page.evaluate(
        f"{FIRST_TABLE}.tHead.rows[0].cells[1].querySelector('button').focus()"
    )
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            windowsVirtualKeyCode=13,
            text="\r",
        )
    assert aria_sort(page)[1] == "ascending"


def test_missing_values_sort_last(page, report):
    page.open(report)
    page.evaluate(f"{FIRST_TABLE}.tBodies[0].rows[0].cells[1].dataset.value = ''")
    for _ in range(2):
        click(page, 1)
        values = column(page, 1)
        assert values[-1] == ""
        assert "" not in values[:-1]


def test_text_has_contrast(page, report):
    """Every color of words reaches 4.5 : 1 against the paper, light and dark."""
    for dark in (False, True):
        page.open(report, dark=dark)
        colors = page.evaluate(
            """(() => {
              const probe = document.body.appendChild(document.createElement('i'));
              const names = ['paper', 'ink', 'muted', 'link', 'caution', 'pass', 'note',
                             'member', 'nonmember'];
              return names.map(n => {
                probe.style.color = `var(--${n})`;
                return getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
              });
            })()"""
        )
        paper, *inks = [luminance(color) for color in colors]
        for ink in inks:
            low, high = sorted([paper, ink])
            assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(color):
    """Relative luminance as WCAG 2 defines it."""
    linear = [
        c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in color[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_prints_with_every_detail_open(page, report):
    page.open(report)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0
    page.call("Emulation.setEmulatedMedia", media="")
    assert len(page.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000
