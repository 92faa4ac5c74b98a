"""The unlearning table on a copy of TOFU's layout, from files to the page."""

import dataclasses
import json

import pytest

from experiments.unlearning import __main__ as unlearning_table
from experiments.unlearning.jobs import is_chosen
from experiments.unlearning.results import collect, sections, succeeds, table
from experiments.unlearning.setup import (
    RETAIN_FIELDS,
    Settings,
    Tofu,
    Trial,
    World,
    lacking,
    method_of,
    results_of,
    setup,
    trials_of,
)
from lt_mia_jax.cli import main
from lt_mia_jax.data.questions import read_questions
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE
from lt_mia_jax.errors import InputError
from lt_mia_jax.report import write_comparison, write_picture
from lt_mia_jax.study.launch import Local, run_jobs
from lt_mia_jax.unlearning.methods import METHODS

SMALL = (
    "--data.background 2 --data.fictitious 10 --data.forget-percent 10 "
    "--data.retain-evaluated 2 --seeds 0 --width 16 --layers 1 --pretrain-epochs 1 "
    "--finetune-epochs 1 --batch-size 16 --executor single"
).split()


@pytest.fixture
def config(tmp_path):
    made, copy = tmp_path / "made", tmp_path / "copy"
    assert main(["syntofu", "--out", str(made), *SMALL]) == 0
    (made / "models" / "retain90-seed0").rename(made / "models" / "retain90")
    copy.mkdir()
    for path in (made / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["perturbed_answer"] = row.pop("wrong_answers", [])
        text = "\n".join(map(json.dumps, rows))
        (copy / path.name).write_text(text)
    return unlearning_table.UnlearningTable(
        preset="tofu",
        tofu=Tofu(
            data=copy,
            models=str(made / "models" / "{}"),
            base=str(made / "models" / "base"),
            refusals=made / "data" / "idk.jsonl",
            template=TEMPLATE,
            length=MAX_LENGTH,
        ),
        out=tmp_path / "out",
        methods=("idk_nll",),
        percents=(10,),
        seeds=(1,),
        rates=(1e-3, 1e3),
        epochs=(2,),
        retain=(1.0, 5.0),
    )


def test_from_files_to_the_page(config, tmp_path):
    jobs = unlearning_table.jobs(config)
    run_jobs(jobs, Local(), logs=tmp_path / "logs")
    written = {p: p.stat().st_mtime_ns for p in config.out.rglob("*.json")}
    run_jobs(jobs, Local(), logs=tmp_path / "logs")
    assert written == {p: p.stat().st_mtime_ns for p in config.out.rglob("*.json")}

    found = collect(config, config.out)
    assert set(found) == {(10, name) for name in ("full", "retrained", *config.methods)}
    # The rate that destroys the model is not the one that is chosen.
    assert {card["rate"] for card in found[10, "idk_nll"]} == {1e-3}
    world = World(config, 10)
    (kept,) = found[10, "idk_nll"]
    trial = Trial(1e-3, 2, kept["retain"])
    again = world.card(world.attempt("idk_nll", trial, 1), False)
    assert again["model_utility"] == pytest.approx(kept["model_utility"])
    assert again["priv_leak"] == pytest.approx(kept["priv_leak"])
    # Reported are the questions that chose no setting.
    perturbed = read_questions(config.tofu.data.parent / "made/data/forget10.jsonl")
    parts = [world.truth[part].sets["forget"].rouge for part in (True, False)]
    assert sum(map(len, parts)) == len(perturbed)

    # Runs of other settings are not taken for these.
    folder = results_of(config, 10) / "idk_nll"
    assert is_chosen(config, folder)
    for other in (
        {"rates": (1e-3,)},
        {"seeds": (2,)},
        {"epochs": (1,)},
        {"retain": (1.0,)},
    ):
        assert not is_chosen(dataclasses.replace(config, **other), folder)

    text = table(config, config.out)
    assert text.count("\n| 10 % |") == 3
    write_picture(sections(config, config.out), tmp_path / "figure.svg")
    assert "idk_nll" in (tmp_path / "figure.svg").read_text()
    page = tmp_path / "page.html"
    write_comparison(sections(config, config.out), page)
    assert "idk_nll" in page.read_text()


def test_methods_without_their_answers_are_left_out(config, caplog):
    every = Settings().methods
    bare = dataclasses.replace(config.tofu, refusals=None)
    config = dataclasses.replace(config, methods=every, tofu=bare)
    names = {job.name for job in unlearning_table.jobs(config)}
    without = {"alt_po", "meow", "idk_nll", "idk_dpo"}
    assert names == {"10/controls", *(f"10/{n}" for n in {*every} - without)}
    assert "meow is left out; it needs --tofu.inverted" in caplog.text
    assert lacking(dataclasses.replace(config, preset="syntofu")) == {}

    # The copy has forgotten its false answers; the file brings them back.
    made = config.tofu.data.parent / "made" / "data"
    given = dataclasses.replace(config.tofu, inverted=made / "forget10.jsonl")
    config = dataclasses.replace(config, tofu=given)
    assert {"alt_po", "meow"}.isdisjoint(lacking(config))
    rows = setup(config, 10).split("forget10")
    true = {row.question: row.inverted for row in read_questions(given.inverted)}
    assert [row.inverted for row in rows] == [true[row.question] for row in rows]
    assert all(row.inverted for row in rows)
    other = dataclasses.replace(given, inverted=made / "retain90.jsonl")
    with pytest.raises(InputError, match="no `inverted` for"):
        setup(dataclasses.replace(config, tofu=other), 10).split("forget10")


@pytest.mark.parametrize("name", METHODS)
def test_the_grid_repeats_no_trial(name):
    config = Settings(rates=(1e-4, 2e-4), epochs=(10,), retain=(1.0, 5.0))
    trials = trials_of(config, name)
    assert trials[0] == (1e-4, 10, 1.0)
    takes_steps = name != "guard_it"
    assert {t.rate for t in trials} == set(config.rates[: 1 + takes_steps])
    # A method that is published without a retain term stays without.
    without = {"grad_ascent", "undial", "ce_u", "gu", "gu_gradient", "gu_subspace"}
    without.add("purge")
    factors = (1.0,) if name in without or not takes_steps else (1.0, 5.0)
    assert {t.retain for t in trials} == set(factors)
    assert len(trials) == len(factors) * (1 + takes_steps)
    field = RETAIN_FIELDS.get(name, "retain_weight")
    before, after = (getattr(m, field) for m in (METHODS[name], method_of(name, 5.0)))
    assert after == 5 * before


def test_success_is_both():
    def card(decision, utility):
        return {
            "forget_quality": {"value": 0.9},
            "equivalence": {"decision": decision},
            "model_utility": {"value": utility},
        }

    retrained = card("equivalent", 0.5)
    assert succeeds(card("equivalent", 0.48), retrained)
    assert not succeeds(card("too few to tell", 0.48), retrained)
    assert not succeeds(card("different", 0.48), retrained)
    earlier = card("equivalent", 0.48)
    del earlier["equivalence"]
    assert not succeeds(earlier, retrained)
    assert not succeeds(card("equivalent", 0.47), retrained)
