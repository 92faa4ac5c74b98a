"""Pages of unlearning: numbers in their places, words that follow from numbers."""

import itertools
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from headless_browser import Page, find_chromium
from oracle_cards import card, document, write
from oracle_report import synthesise_run
from page_tables import HOSTILE, Tables

from lt_mia_jax.cli import main
from lt_mia_jax.errors import InputError
from lt_mia_jax.process import BAD_INPUT
from lt_mia_jax.report import (
    render,
    render_comparison,
    write_comparison,
    write_picture,
)
from lt_mia_jax.report.forgetting.comparison import leak_kind
from lt_mia_jax.verification.storage import card_from_json

CHROMIUM = find_chromium()
SVG = "http://www.w3.org/2000/svg"
OVER = {"leak": 90.0, "log_quality": -1.0, "known": 0.01, "utility": 0.3}
LEAKING = {"leak": -80.0, "log_quality": -9.0, "known": 0.6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    return [
        write(base / "strong", document("npo", after=OVER)),
        write(base / "weak", document("simnpo", after=LEAKING)),
        write(base / "good", document("rmu")),
    ]


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page)).replace("\xa0", " ")


def test_the_page_of_one_run_has_its_numbers(runs):
    content = json.loads((runs[0] / "card.json").read_text())
    page = render([runs[0]])
    tables = Tables(page).tables
    by_label = {
        row[0][0].split("\n")[0]: row
        for found in itertools.chain.from_iterable(tables.values())
        for row in found[1:]
    }
    names = ("before", "after", "retrained")
    for start, key in {
        "Model utility": "model_utility",
        "PrivLeak": "priv_leak",
        "Extraction strength": "forget_extraction_strength",
        "AUC Loss": "auc_loss",
        "Completeness": "completeness",
    }.items():
        row = next(row for label, row in by_label.items() if label.startswith(start))
        expected = [content["models"][name][key]["value"] for name in names]
        assert [float(cell[1]) for cell in row[1:]] == pytest.approx(expected)
    quality = next(row for label, row in by_label.items() if "Forget quality" in label)
    assert [float(cell[1]) for cell in quality[1:]] == [-30.0, -1.0, 0.0]
    shown = tables["What"][-1]
    excess = [
        said["after"]["probability"] - said["retrained"]["probability"]
        for said in (each["said"] for each in content["examples"])
    ]
    order = np.argsort(excess)[::-1]
    assert [row[0][0] for row in shown[1:]] == [f"question {i} ?" for i in order]
    assert "after says" in shown[1][3][0]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (OVER, ["forget too much", "Over-forgotten", "less familiar"]),
        (OVER, ["Forget quality alone misleads", "Utility lost"]),
        (LEAKING, ["still recognized", "an attack still tells"]),
        ({}, ["No leak beyond retraining", "Utility kept"]),
        (
            {"leak": 40.0, "width": 60.0},
            ["rather over-forgotten", "left a model that truth ratios tell"],
        ),
        (
            {"leak": -30.0, "width": 35.0},
            ["rather recognized", "to say whether it is more than 25 % from"],
        ),
        ({"leak": 1.0, "width": 60.0}, ["undecided"]),
        ({"note": "disjoint samples"}, ["the floor of the test", "floor"]),
        ({"n": 20}, ["rests on 20 questions"]),
    ],
)
def test_words_follow_the_numbers(tmp_path, after, words):
    page = text_of(render([write(tmp_path / "run", document(after=after))]))
    for word in words:
        assert word in page
    for absent in {"Over-forgotten", "Still recognized"} - set(words):
        if not after:
            assert absent not in page
    assert "refused with" in page
    assert "80.0 % of what the model before knew" in page
    assert "5.0 times as much" in page


def test_what_was_never_forgotten_cannot_come_back(tmp_path):
    page = text_of(render([write(tmp_path / "run", document(after={"known": 0.9}))]))
    assert page.count("It says nothing: 92.3 % of what the model before knew") == 2
    assert "5.0 times as much" not in page


@pytest.mark.parametrize(("auc", "said"), [(0.3, True), (0.49, False)])
def test_over_forgetting_shows_without_a_retrained_model(tmp_path, auc, said):
    content = document()
    del content["models"]["retrained"]
    for name, value in (("before", 0.9), ("after", auc)):
        found = content["models"][name]
        del found["priv_leak"]
        found["tpr_min_k"] = found["tpr_loss"]
        found["auc_min_k"] = {"value": value, "low": value - 0.02, "high": value + 0.02}
    for key in ("layers", "map", "relearning"):
        content[key] = None
    for each in content["examples"]:
        del each["said"]["retrained"]
    page = text_of(render([write(tmp_path / "run", content)]))
    assert ("below 0.5" in page) == ("Over-forgotten" in page) == said


def test_seeds_that_disagree_have_no_color():
    kinds = []
    for leaks in ((90.0, 90.0), (90.0, 0.0)):
        cards = [card_from_json(card(leak=leak)) for leak in leaks]
        kinds.append(leak_kind(cards))
    assert kinds == ["over", "plain"]


def test_a_run_with_little_measured(tmp_path):
    content = document()
    del content["models"]["retrained"]
    for name in ("before", "after"):
        kept = ("n_forget", "forget_probability", "retain_probability")
        found = content["models"][name]
        content["models"][name] = {key: found[key] for key in kept}
        content["models"][name]["forget_probability"]["low"] = None
        content["models"][name]["forget_probability"]["high"] = None
    content |= {"scores": {}, "layers": None, "map": None, "relearning": None}
    content |= {"rounded": [], "notes": []}
    for each in content["examples"]:
        del each["said"]["retrained"]
        each |= {"topic": None, "question": None}
    run = write(tmp_path / "run", content)
    page = text_of(render([run]))
    assert "No retrained model" in page
    assert "No attack" in page
    assert "brought the probability of the forgotten answers from 0.95 to 0.30" in page
    assert "None" not in page
    assert "nan" not in page
    both = text_of(render([run, run]))
    assert "1 \N{MINUS SIGN} forget probability" in both


def test_runs_that_measured_more_or_less_are_compared(tmp_path):
    little = document("npo")
    for name in ("before", "after"):
        del little["models"][name]["forget_quality"]
    del little["models"]["retrained"]
    for key in ("layers", "map", "relearning"):
        little[key] = None
    for each in little["examples"]:
        del each["said"]["retrained"]
    runs = [write(tmp_path / "one", little), write(tmp_path / "two", document("rmu"))]
    rows = Tables(render(runs)).tables["Each"][0][1:]
    assert [row[0][0] for row in rows] == ["npo", "rmu", "before", "retrained"]


def test_chance_is_not_called_a_return(tmp_path):
    content = document()
    content["rounded"][0]["recovered"] = {"value": 0.3, "low": -0.2, "high": 0.6}
    curve = content["relearning"]
    curve["robustness"] = {"value": 0.4, "low": 0.1, "high": 0.9}
    page = text_of(render([write(tmp_path / "run", content)]))
    assert "which may be chance" in page
    assert "gain 2.5 times as much" in page
    assert "with so few questions that may be chance" in page


def test_runs_are_compared(runs):
    page = render(runs)
    tables = Tables(page).tables
    header, *rows = tables["Each"][0]
    assert [row[0][0] for row in rows] == [
        "npo",
        "simnpo",
        "rmu",
        "before",
        "retrained",
    ]
    labels = [cell[0] for cell in header]
    quality = next(i for i, label in enumerate(labels) if "Forget quality" in label)
    assert labels[quality + 1].startswith("PrivLeak")
    assert [float(row[quality][1]) for row in rows] == [-1.0, -9.0, -2.0, -30.0, 0.0]
    assert [float(row[quality + 1][1]) for row in rows][:3] == [90.0, -80.0, 0.0]
    heat = tables["Linear"][0]
    assert [row[0][0] for row in heat[1:]] == ["before", "npo", "simnpo", "rmu"]
    assert [float(c[1]) for c in heat[2][1:]] == pytest.approx([1.0, 0.9, 0.8])
    matrix = tables["Probability"][0]
    assert [cell[0] for cell in matrix[0]][1:] == [
        *("npo", "simnpo", "rmu", "before", "retrained")
    ]
    content = json.loads((runs[1] / "card.json").read_text())
    said = [each["said"]["after"]["probability"] for each in content["examples"]]
    assert [float(row[2][1]) for row in matrix[1:]] == said
    assert "retrained says 0" in page


def test_other_texts_make_another_section(runs, tmp_path):
    other = write(tmp_path / "other", document("npo", forget="0" * 64))
    page = render([*runs, other])
    assert 'id="group-2"' in page
    ids = [attrs["id"] for _, attrs in Tables(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "3 methods compared" in page


def test_bare_cards_of_several_seeds(tmp_path):
    cards = {
        "forget 10 %": {
            "full": [card(leak=-99.0)],
            "retrained-0": [card(log_quality=0.0)],
            "npo": [card(utility=0.5), card(utility=0.6)],
            "rmu": [{"failed": "diverged at step 3"}],
        }
    }
    out = tmp_path / "page.html"
    write_comparison(cards, out)
    page = out.read_text()
    _, *rows = Tables(page).tables["Each"][0]
    assert [row[0][0].split("\n")[0] for row in rows][:2] == ["npo2 seeds", "rmu"]
    assert float(rows[0][1][1]) == pytest.approx(0.55)
    assert "[0.480,\xa00.620]" in rows[0][1][0]
    assert "diverged at step 3" in rows[1][1][0]
    assert page == render_comparison(cards)
    with pytest.raises(InputError, match="no cards"):
        render_comparison({})
    with pytest.raises(InputError, match=r"forget_quality\.distance is missing"):
        render_comparison({"a": {"npo": [{"forget_quality": {"value": 1.0}}]}})


def test_plots_stand_alone_as_a_picture(tmp_path):
    cards = {
        f"forget {percent} %": {
            "full": [card(leak=-99.0)],
            "npo": [card(utility=utility, leak=2.0)],
            "<rmu>": [card(utility=0.3, leak=80.0)],
        }
        for percent, utility in ((5, 0.5), (10, 0.6))
    }
    out = tmp_path / "picture.svg"
    write_picture(cards, out)
    root = ElementTree.parse(out).getroot()
    texts = ["".join(each.itertext()) for each in root.iter(f"{{{SVG}}}text")]
    for name in ("full", "npo", "<rmu>"):
        assert texts.count(name) == 2  # one a section
    assert [text for text in texts if text.startswith("forget ") and "%" in text] == (
        list(cards)
    )
    # Sections stand below one another: nothing reaches into the next.
    tops = [float(e.attrib["y"]) for e in root if e.tag == f"{{{SVG}}}svg"]
    heights = [float(e.attrib["height"]) for e in root if e.tag == f"{{{SVG}}}svg"]
    bottom = float(root.attrib["viewBox"].split()[-1])
    assert tops[0] + heights[0] <= tops[1]
    assert tops[1] + heights[1] <= bottom
    key = [e for e in root if e.tag == f"{{{SVG}}}text"]
    width = float(root.attrib["viewBox"].split()[2])
    ends = [float(e.attrib["x"]) + 6 * len(e.text or "") for e in key]
    assert max(ends) <= width
    with pytest.raises(InputError, match="nothing to plot"):
        write_picture({"one": {"npo": [card()]}}, out)


def test_kinds_do_not_mix(runs, tmp_path, capsys):
    audit = synthesise_run(tmp_path / "audit", n=30)
    arguments = ["report", "--runs", str(runs[0]), str(audit)]
    assert main([*arguments, "--out", str(tmp_path / "x.html")]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "runs of two kinds" in error
    assert f"{audit} (membership)" in error
    broken = document()
    del broken["models"]["after"], broken["method"]
    broken["examples"][0]["said"]["after"]["probability"] = "high"
    words = r"card\.json: method is missing; models\.after is missing"
    with pytest.raises(InputError, match=words) as caught:
        render([write(tmp_path / "broken", broken)])
    problem = "examples[0].said.after.probability is 'high' instead of a finite number"
    assert problem in str(caught.value)


def test_answers_of_other_models_are_refused(tmp_path):
    content = document()
    content["examples"][1]["said"] = {"after": content["examples"][1]["said"]["after"]}
    with pytest.raises(InputError, match=r"examples\[1\]\.said has \['after'\]"):
        render([write(tmp_path / "run", content)])
    # Cards of tables that were made without attacks or intervals.
    bare = {"forget_probability": {"value": 0.2}, "retain_probability": {"value": 0.9}}
    assert "0.200" in render_comparison({"a": {"npo": [bare], "rmu": [bare]}})


def test_pages_are_safe_and_refer_to_nothing(runs, tmp_path):
    def hostile(value):
        if isinstance(value, dict):
            return {key: hostile(each) for key, each in value.items()}
        if isinstance(value, list):
            return [hostile(each) for each in value]
        return HOSTILE if isinstance(value, str) else value

    content = hostile(document()) | {"kind": "unlearning"}
    bad = write(tmp_path / "bad", content)
    for page in (render([bad]), render([bad, bad]), render([runs[0]]), render(runs)):
        tags = Tables(page).tags
        assert sum(tag == "script" for tag, _ in tags) == 1
        assert not [tag for tag, attrs in tags if tag == "img" or "onerror" in attrs]
        for _, attrs in tags:
            assert (attrs.get("href") or "#").startswith(("#", "data:"))
        assert not re.search(r"url\(|@import|https?://", page)
        levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            assert not re.search(r' (fill|stroke)="|nan', figure)
            assert 'role="img" aria-label="' in figure or "aria-hidden" in figure


def test_leakage_of_every_topic_is_shown(tmp_path):
    content = document()
    assert "Leakage by topic" not in render([write(tmp_path / "without", content)])
    cells = [
        {"attack": attack, "group": group, "n": n, "value": value}
        for attack, group, n, value in (
            ("loss", "city", 9, 0.25),
            ("min_k", "city", 9, -0.5),
            ("loss", "<pet>", 12, 0.0),
        )
    ]
    worst = cells[1] | {"low": -0.75, "high": -0.125}
    content["models"]["after"] |= {"group_leakage": cells, "worst_group": worst}
    page = render([write(tmp_path / "run", content)])
    [table] = Tables(page).tables["AUC"]
    assert [[cell[0] for cell in row] for row in table] == [
        ["Topic", "Loss", "Min-K% 40 %"],
        ["city9 texts", "0.250", "−0.500 [−0.750,\xa0−0.125]"],
        ["<pet>12 texts", "0.000", "—"],
    ]
    assert "The largest is that of Min-K% 40 % on city" in text_of(page)


def test_risks_are_accepted_together():
    def judged(p, value=0.02):
        risk = {"value": value, "level": 0.1, "p_value": p, "n": 40}
        return card() | {"risk": risk}

    cards = {
        "retrained": [judged(1e-9)],  # no method: is not judged and does not count
        "npo": [judged(0.001), judged(0.012)],
        "rmu": [judged(0.001), judged(0.02)],  # above 0.05 / 4
    }
    page = render_comparison({"a": cards})
    header, *rows = Tables(page).tables["Each"][0]
    assert header[-1][0] == "Extraction risk"
    marked = {row[0][0]: "below 10\xa0%" in row[-1][0] for row in rows}
    assert marked == {"npo2 seeds": True, "rmu2 seeds": False, "retrained": False}
    assert "Bonferroni" in page
    assert "Bonferroni" not in render_comparison({"a": {"npo": [card()] * 2}})


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in PATH")
@pytest.mark.timeout(120)
def test_pages_in_a_browser(runs, tmp_path):
    assert CHROMIUM is not None
    pages = {"one": render([runs[0]]), "several": render(runs)}
    with Page(CHROMIUM, tmp_path / "profile") as browser:
        for name, content in pages.items():
            file = tmp_path / f"{name}.html"
            file.write_text(content)
            for width, dark in ((390, True), (1280, False)):
                browser.open(file, width=width, dark=dark)
                shown = browser.evaluate(
                    "[document.documentElement.scrollWidth, innerWidth]"
                )
                assert shown == [width, width]
                assert browser.complaints() == []
                assert browser.requests() == [file.resolve().as_uri()]
