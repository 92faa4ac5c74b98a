"""The survival study on a handful of sentences, from corpora to its page."""

import dataclasses
import math
import random

import numpy as np
import pytest
import tiny_world

from experiments.survival import __main__ as survival
from experiments.survival import ingredients, jobs, tables
from experiments.survival.config import CORPORA, KNOWN
from experiments.survival.demonstration import Demonstration, Outcome, verdict
from experiments.survival.demos import DEMOS
from experiments.survival.operations import OPERATIONS
from experiments.survival.page import FIGURE, PAGE, write_page
from experiments.survival.toy import FIRST, NAMES, SYMBOLS, Task, answers, spelled
from lt_mia_jax.data.corpora import Corpus
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.study import stages


def outcomes(letters):
    """P passed, f failed, x without its precondition."""
    return [Outcome({}, letter == "p", letter != "x") for letter in letters]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("ppppp", "pass"),
        ("ppppf", "pass"),
        ("xpppp", "pass"),
        ("pppff", "fail"),
        ("xpppf", "fail"),
        ("fffff", "fail"),
        ("xxppp", "inconclusive"),
        ("xxxxx", "inconclusive"),
    ],
)
def test_four_of_five_seeds_must_pass(seeds, expected):
    assert verdict(outcomes(seeds)) == expected


def test_an_outcome_without_its_precondition_never_counts():
    found = [Outcome({}, True, False)] * 2 + outcomes("ppp")
    assert verdict(found) == "inconclusive"


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_a_loop(name):
    x = np.random.default_rng(0).integers(SYMBOLS, size=(20, 6))
    for row, answer in zip(x.tolist(), answers(name, x).tolist(), strict=True):
        expected = {
            "copy": row,
            "reverse": row[::-1],
            "sort": sorted(row),
            "modadd": [
                (a + b) % SYMBOLS for a, b in zip(row, row[1:] + row[:1], strict=True)
            ],
        }[name]
        assert answer == expected


def test_languages_share_no_token_and_lose_no_symbol():
    x = np.arange(SYMBOLS)[None]
    tokens = [set(spelled(x, language)[0].tolist()) for language in range(11)]
    assert all(len(each) == SYMBOLS for each in tokens)
    assert len(set().union(*tokens)) == 11 * SYMBOLS
    assert min(map(min, tokens)) == FIRST
    texts = Task("copy", language=3).texts(np.random.default_rng(0), 5)
    assert np.array_equal(texts.ids[:, 1:7], texts.ids[:, 8:14])
    assert texts.answer.sum() == 5 * 7


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three operations on 24 members, with models of six updates."""
    root = tmp_path_factory.mktemp("survival")
    config = survival.Survival(
        out=root / "run",
        members=24,
        nonmembers=24,
        validation=4,
        steps=5,
        length=16,
        width=24,
        layers=3,
        strengths=("weak",),
        only=("base", "mean", "reglora"),
        docs=root / "docs",
    )
    rng, names = random.Random(5), (*KNOWN, *CORPORA.values())

    def corpus(name):
        texts = [f"{tiny_world.sentence(rng, 9)} {name} {i}" for i in range(240)]
        return Corpus(name, tuple(map(text_id, texts)), tuple(texts), False, {})

    folder = config.out / "corpora"
    stages.make_corpora(folder, {"corpora": names}, lambda: [*map(corpus, names)])
    survival.run(dataclasses.replace(config, writing=survival.Writing(overwrite=True)))
    return config


def test_no_text_is_in_two_parts(finished):
    for name in CORPORA:
        found = ingredients.parts(finished.study, name)
        sets = [set(part) for part in found[:4]]
        assert [len(s) for s in sets] == [24, 12, 24, 4]
        assert len(set().union(*sets)) == 64


def test_the_page_shows_what_was_measured(finished):
    page = (finished.docs / PAGE).read_text()
    assert (finished.docs / FIGURE).read_text().startswith("<?xml")
    for name in finished.only:
        row = read_json(finished.out / "survival" / f"{name}-weak.json")
        for corpus in OPERATIONS[name].ingredients or CORPORA:
            value = row[corpus]["members"]["lt_mia"]["auc"]["value"]
            shown = f"{value:.3f}".removeprefix("0")
            assert f"| {name} | {corpus} | {shown} [" in page


def test_members_of_an_expert_are_members_of_that_expert_alone(finished):
    """What is measured as a member is what the expert learned, and nothing else."""
    world = ingredients.World(finished.study, "weak")
    learned = world.members("a").input_ids
    again = ingredients.encoded(
        ingredients.parts(finished.study, "a").members, False, world.base
    )
    assert np.array_equal(learned, again.input_ids)
    other = world.members("b").input_ids
    assert not {row.tobytes() for row in learned} & {row.tobytes() for row in other}


def test_a_finished_run_computes_nothing_again(finished):
    files = sorted((finished.out / "survival").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    survival.run(dataclasses.replace(finished, docs=None))
    assert [file.stat().st_mtime_ns for file in files] == before


def test_unknown_names_are_refused(tmp_path):
    for change, said in (({"only": ("tiess",)}, "tiess"), ({"strengths": ("x",)}, "x")):
        config = survival.Survival(out=tmp_path, **change)
        with pytest.raises(InputError, match=said):
            survival.jobs(config)


def test_demonstrations_stand_in_the_page_with_all_seeds(tmp_path):
    name = next(iter(DEMOS))
    for seed in range(5):
        row = {
            "measures": {"score": seed / 4},
            "passed": seed > 0,
            "precondition": True,
        }
        (tmp_path / "demos").mkdir(exist_ok=True)
        write_json(tmp_path / "demos" / f"{name}-{seed}.json", row)
    page = write_page(tmp_path, None)
    assert "| **pass** | 4 of 5 | score 0.5 (0, 0.25, 0.5, 0.75, 1) |" in page
    assert DEMOS[name].claim in page


def test_a_goal_that_is_never_reached_is_kept(tmp_path, monkeypatch):
    name = next(iter(DEMOS))
    outcome = Outcome({"steps": math.inf, "share": math.nan, "x": 0.5}, passed=True)
    demo = Demonstration("system", "claim", lambda seed: outcome)
    monkeypatch.setitem(DEMOS, name, demo)
    for seed in range(5):
        jobs.demonstrate(tmp_path, name, seed)
    found = jobs.read_outcome(jobs.demo_file(tmp_path, name, 0))
    np.testing.assert_equal(found.measures, outcome.measures)
    assert "steps inf (inf, inf, inf, inf, inf)" in write_page(tmp_path, None)


def test_controls_count_the_intervals_with_chance():
    def row(value, low, high):
        area = {"auc": {"value": value, "low": low, "high": high}}
        return {c: {"controls": {"lt_mia": area}} for c in CORPORA}

    found = {("a", "weak"): row(0.5, 0.4, 0.6), ("b", "weak"): row(0.7, 0.6, 0.8)}
    summary = tables.controls(found)
    assert (summary["count"], summary["inside"]) == (4, 2)
    assert summary["mean"] == pytest.approx(0.6)
