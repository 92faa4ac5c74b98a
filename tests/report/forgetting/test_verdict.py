"""The sentences of a verdict: success only where it was shown."""

import numpy as np
import pytest
from oracle_cards import document, write
from page_tables import Tables

from lt_mia_jax.report import render
from lt_mia_jax.report.forgetting.findings import findings
from lt_mia_jax.report.forgetting.verdict import verdict
from lt_mia_jax.verification.card import report_card
from lt_mia_jax.verification.items import Items, Measured
from lt_mia_jax.verification.storage import card_to_json, run_from_json


def sentences(content):
    """Verdict and findings of a run as one text, and levels by title."""
    run = run_from_json(content)
    found = findings(run)
    text = " ".join([*verdict(run), *(f"{each.title} {each.text}" for each in found)])
    levels = {each.title: each.level for each in found}
    return text.replace("\N{NO-BREAK SPACE}", " "), levels


def likeness(decision, *, n=90, **shares):
    """The test of equivalence as it stands in files."""
    ends = {
        name: {"value": x, "low": x - w, "high": x + w}
        for name, (x, w) in shares.items()
    }
    return {"decision": decision, "margin": 0.25, "shares": ends, "n": n}


SUCCESS = (
    "left the model like",
    "Like the retrained model",
    "as retrained",
    "No leak beyond retraining",
    "passes",
    "could be those",
)


@pytest.mark.parametrize(
    ("found", "words", "absent"),
    [
        (None, ["brought the probability", "no evidence that they are alike"], SUCCESS),
        (
            likeness("equivalent", probability=(0.02, 0.1)),
            [
                "left the model like one that never saw the texts: on 90 questions",
                "less than 25 % of what was learned",
                "Like the retrained model",
            ],
            ["could be those", "too few to tell"],
        ),
        (
            likeness("too few to tell", n=4, probability=(0.02, 0.6)),
            [
                "and 4 questions are too few to tell whether that is as after",
                "Too few questions to tell",
                "nor that it is not",
            ],
            SUCCESS,
        ),
        (
            likeness("too few to tell", n=1),
            ["and 1 question is too few to tell"],
            SUCCESS,
        ),
        (
            likeness("different", probability=(1.0, 0.01)),
            [
                "left 100.0 % of what the model knew beyond one that never saw",
                "Not like the retrained model",
                "90 % interval 99.0 % to 101.0 %",
            ],
            SUCCESS,
        ),
        (
            likeness("different", probability=(-0.1, 0.1), log_probability=(-4, 1)),
            ["made the model forget more than one that never saw the texts"],
            SUCCESS,
        ),
        (
            likeness("different", probability=(0, 0.1), truth_ratio=(0.7, 0.1)),
            ["left a model that truth ratio tells from one that never saw"],
            SUCCESS,
        ),
    ],
)
def test_success_is_said_by_the_test_of_equivalence_alone(found, words, absent):
    """With the same truth ratios, which no test tells apart."""
    # PrivLeak is undecided, so that it says nothing either.
    content = document(after={"log_quality": -0.5, "leak": 1.0, "width": 60.0})
    content["models"]["after"]["equivalence"] = found
    said, _ = sentences(content)
    for word in words:
        assert word in said, word
    for word in absent:
        assert word not in said, word


@pytest.mark.parametrize(
    ("n", "low", "even"), [(90, -5.0, True), (4, -5.0, False), (90, None, False)]
)
def test_privleak_of_a_few_texts_is_no_success(n, low, even):
    content = document(after={"n": n})
    content["models"]["after"]["priv_leak"] |= {"low": low, "high": low and -low}
    said, levels = sentences(content)
    assert ("No leak beyond retraining" in levels) == even
    assert ("about as well as on the retrained model" in said) == even
    assert ("too few texts to say" in said) != even


@pytest.mark.parametrize(("asked", "level"), [(3, "note"), (30, "pass")])
def test_robustness_on_few_questions_is_no_success(asked, level):
    content = document()
    robust = {"value": 0.9, "low": 0.8, "high": 1.0}
    content["relearning"] |= {"asked": asked, "robustness": robust}
    back = {"value": 0.0, "low": -0.01, "high": 0.01}
    content["rounded"][0] |= {"recovered": back}
    content["rounded"][0]["models"]["after"]["n_forget"] = asked
    _, levels = sentences(content)
    assert (levels["Relearning"], levels["Rounded to 4 bits"]) == (level, level)


@pytest.mark.parametrize("width", [0.01, 0.2])
def test_utility_kept_needs_its_interval(width):
    content = document(after={"utility": 0.6})
    content["models"]["after"]["model_utility"] |= {"low": 0.6 - width}
    said, levels = sentences(content)
    assert (levels.get("Utility kept") == "pass") == (width == 0.01)
    assert ("95 % interval begins at" in said) == (width == 0.2)


def test_the_comparison_says_which_models_are_as_retrained(tmp_path):
    folders = []
    for name, decision in (("one", "equivalent"), ("two", "too few to tell")):
        content = document(name, after={"log_quality": -0.1, "width": 60.0})
        content["models"]["after"]["equivalence"] = likeness(decision)
        folders.append(write(tmp_path / name, content))
    page = render(folders)
    first, *rows = Tables(page).tables["Each"][0]
    place = next(i for i, cell in enumerate(first) if "Knowledge left" in cell[0])
    told = {row[0][0].split("\n")[0].strip(): row[place][0] for row in rows}
    assert "as retrained" in told["one"]
    assert "too few to tell" in told["two"]
    assert "passes" not in page
    assert "which is no evidence that there is none" in " ".join(page.split())


@pytest.mark.parametrize("count", [1, 4, 20])
def test_unlearning_that_did_nothing_is_not_declared_done(count):
    """The model that was to forget, judged on a few records."""
    rng = np.random.default_rng(count)
    nothing = np.full(count, np.nan)

    def one(low, high):
        probability = rng.uniform(low, high, count)
        ratio = rng.uniform(0.6, 1.4, count)  # one distribution for all
        items = Items(
            *(probability, probability, probability, probability),
            *(nothing, nothing, ratio, nothing),
            generated=("",) * count,
        )
        return Measured({"forget": items})

    full, truth = one(0.97, 0.99), one(0.2, 0.6)
    content = document()
    card = card_to_json(report_card(full, truth, original=full))
    content["models"]["after"] = card
    said, levels = sentences(content)
    assert not set(levels) & {"Like the retrained model", "No leak beyond retraining"}
    assert not any(word in said for word in SUCCESS)
    if count < 5:
        assert "too few to tell whether that is as after retraining" in said
        # What the test of truth ratios says of it.
        assert card["forget_quality"]["value"] >= 0.05
    else:
        assert "left 100.0 % of what the model knew" in said
