import html
import itertools
import json
import re

import pytest
from oracle_report import synthesise_run
from page_tables import HOSTILE, Tables

from lt_mia_jax.errors import InputError
from lt_mia_jax.report import render, write_report


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return synthesise_run(tmp_path_factory.mktemp("labeled") / "run", n=250)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unlabeled") / "run"
    return synthesise_run(directory, n=80, labeled=False, calibrated=True)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    names = ("gpt2 on news", "mamba on wiki", "rwkv on code", "gemma on news")
    return synthesise_run(
        tmp_path_factory.mktemp("several") / "run", n=60, combinations=names
    )


def test_attack_table_equals_the_summary(labeled):
    summary = json.loads((labeled / "summary.json").read_text())
    attacks = summary["combinations"][0]["attacks"]
    controls = summary["combinations"][0]["controls"]
    header, *rows = Tables(render([labeled])).tables["Attacks"][0]
    assert len(header) == 7
    expected = sorted(attacks.values(), key=lambda each: -each["auc"]["value"])
    expected += [controls["blind"], controls["permutation"]]
    assert len(rows) == len(expected)
    for row, result in zip(rows, expected, strict=True):
        auc = result["auc"]
        assert float(row[1][1]) == auc["value"]
        assert (
            f"{auc['value']:.3f} [{auc['low']:.3f},\xa0{auc['high']:.3f}]" in row[1][0]
        )
        five = result["tpr"]["0.05"]["conservative"]
        assert float(row[2][1]) == five["value"]
        assert f"{100 * five['value']:.1f}\xa0%" in row[2][0]
        assert f"[{100 * five['low']:.1f},\xa0{100 * five['high']:.1f}]" in row[2][0]
        for refused in row[3:5]:
            assert refused[0].strip() == "too few"
            assert refused[1] == ""
        assert row[5][0] == "250 + 250"
    assert rows[0][0][0].startswith("LT-MIA learned")
    assert rows[-2][0][0].startswith("Text-only baseline")
    assert any(row[0][0] == "some_future_attack" for row in rows)


def test_interpolated_rates_are_on_demand(labeled):
    summary = json.loads((labeled / "summary.json").read_text())
    lead = summary["combinations"][0]["attacks"]["lt_mia"]["tpr"]["0.05"]
    page = render([labeled])
    rows = Tables(page).tables["TPR"][0]
    assert float(rows[1][1][1]) == lead["interpolated"]["value"]
    assert "<summary>Interpolated TPR" in page


def test_top_texts_are_the_highest(labeled):
    rows = [
        json.loads(line) for line in (labeled / "scores.jsonl").read_text().splitlines()
    ]
    rows.sort(key=lambda row: -row["scores"]["lt_mia"])
    shown = Tables(render([labeled])).tables["The"][0][1:]
    assert [row[0][0] for row in shown] == [row["id"] for row in rows[:50]]
    assert [float(row[1][1]) for row in shown] == [
        row["scores"]["lt_mia"] for row in rows[:50]
    ]


def test_verdict_comes_first_and_sections_in_order(labeled, unlabeled):
    page = render([labeled])
    marks = ["far better than chance", 'class="tiles"', "What speaks for", ">Attacks<"]
    marks += ["ROC on log", "Loss of the target", "Highest-scored texts", ">Flags<"]
    marks += ["Record of the run", "Configuration", "How to read this page</h2>"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    page = render([unlabeled])
    assert ">Attacks<" not in page
    assert "ROC on log" not in page
    assert "Calibration of the p-values" in page
    assert "3.2\xa0×\xa010⁻⁷" in page or "3\xa0×\xa010⁻⁷" in page


def test_several_combinations_are_compared(several):
    summary = json.loads((several / "summary.json").read_text())
    page = render([several])
    rows = Tables(page).tables["LT-MIA"][0][1:]
    for row, each in zip(rows, summary["combinations"], strict=True):
        assert row[0][0] == each["name"]
        assert float(row[1][1]) == each["attacks"]["lt_mia"]["auc"]["value"]
        rivals = [
            attack["auc"]["value"]
            for name, attack in each["attacks"].items()
            if name != "lt_mia"
        ]
        assert float(row[2][1]) == max(rivals)
        assert float(row[4][1]) == each["loss_gap_nats"]["value"]
    assert page.count('<details class="combination"') == 4
    assert page.count("ROC on logarithmic axes.") == 4


def test_several_runs_share_a_page(labeled, unlabeled, several):
    page = render([labeled, unlabeled, several])
    assert "Membership report on 3 runs" in page
    ids = [attrs["id"] for _, attrs in Tables(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|aria-labelledby=")([^"]+)', page)
    assert set(targets) <= set(ids)


def test_hostile_strings_are_escaped(tmp_path):
    run = synthesise_run(tmp_path / "run", n=30, labeled=False, calibrated=True)
    rows = [json.loads(line) for line in (run / "scores.jsonl").open()]
    for row in rows:
        row["id"], row["flags"] = HOSTILE, [HOSTILE]
        row["scores"][HOSTILE] = 0.5
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((run / "summary.json").read_text())
    for key in ("title", "command"):
        summary[key] = HOSTILE
    summary |= {"verdict": [HOSTILE] * 7, "notes": [HOSTILE], "primary": HOSTILE}
    for key in ("fingerprints", "versions", "config"):
        summary[key] = {HOSTILE: HOSTILE}
    for key in ("name", "target", "reference", "corpus"):
        summary["combinations"][0][key] = HOSTILE
    summary["dataset"] |= {"method": HOSTILE, HOSTILE: HOSTILE}
    (run / "summary.json").write_text(json.dumps(summary))
    page = render([run])
    summary["dataset"]["decision"] = HOSTILE
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"decision is .* instead of one of 'member'"):
        render([run])
    tags = Tables(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not [tag for tag, attrs in tags if tag == "img" or "onerror" in attrs]
    assert html.escape("<script>alert(") in page
    assert "{{ 7*7 }}" in page


def test_the_page_refers_to_nothing_outside(labeled, unlabeled, several):
    page = render([labeled, unlabeled, several])
    for tag, attrs in Tables(page).tags:
        assert tag not in ("iframe", "object", "embed", "img", "audio", "video")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"url\(|@import|https?://", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "script-src 'sha256-" in policy[1]


def test_figures_are_small_and_follow_the_palette(labeled, unlabeled, several):
    page = render([labeled, unlabeled, several])
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) > 10
    assert max(map(len, figures)) < 60_000
    for figure in figures:
        assert not re.search(r'(fill|stroke)="|#[0-9a-fA-F]{3,6}\b|nan', figure)
        assert 'role="img" aria-label="' in figure or 'aria-hidden="true"' in figure


def test_page_is_accessible_in_structure(labeled, several):
    tags = Tables(render([labeled, several])).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    assert ("html", {"lang": "en"}) in tags


def test_null_results_are_dashes(tmp_path):
    run = synthesise_run(tmp_path / "run", n=30)
    summary = json.loads((run / "summary.json").read_text())
    combination = summary["combinations"][0]
    combination["attacks"]["zlib"]["auc"] = {"value": None, "low": None, "high": None}
    combination["attacks"]["ez"]["auc"] = None
    combination["attacks"]["lt_mia"]["auc"] |= {"low": None, "high": None}
    combination["attacks"]["loss"]["tpr"]["0.05"]["conservative"] = None
    combination["loss_gap_nats"] = None
    combination["controls"] = {}
    summary["verdict"] = []
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [json.loads(line) for line in (run / "scores.jsonl").open()]
    for row in rows:
        row["scores"]["zlib"] = None
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render([run])
    shown = {row[0][0]: row for row in Tables(page).tables["Attacks"][0]}
    zlib = next(row for name, row in shown.items() if name.startswith("Zlib"))
    assert zlib[1][0].strip() == "—"
    assert zlib[1][1] == ""
    assert "nan" not in page
    assert "None" not in page


def test_same_runs_give_the_same_bytes(labeled, tmp_path):
    out = tmp_path / "deep" / "report.html"
    write_report([labeled], out)
    first = out.read_bytes()
    write_report([labeled], out)
    assert out.read_bytes() == first
    assert [each.name for each in out.parent.iterdir()] == ["report.html"]


def test_no_run_is_an_error():
    with pytest.raises(InputError, match="no run directories"):
        render([])
