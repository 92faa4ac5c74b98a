"""The unlearning table on a copy of TOFU's layout, from files to the page."""

import dataclasses
import json

import pytest
import unlearning_table
from launch import Local, run_jobs
from unlearning_jobs import is_chosen
from unlearning_results import collect, draw, table
from unlearning_setup import Tofu, World, results_of

from lt_mia_jax.cli import main
from lt_mia_jax.data.questions import read_questions
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE
from lt_mia_jax.report import write_comparison

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
    again = world.card(world.attempt("idk_nll", 1e-3, 2, 1), False)
    (kept,) = found[10, "idk_nll"]
    assert again["model_utility"] == pytest.approx(kept["model_utility"])
    assert again["priv_leak"] == pytest.approx(kept["priv_leak"])
    # Reported are the questions that chose no setting.
    perturbed = read_questions(config.tofu.data.parent / "made/data/forget10.jsonl")
    parts = [world.truth[part].sets["forget"].rouge for part in (True, False)]
    assert sum(map(len, parts)) == len(perturbed)

    # Runs of other settings are not taken for these.
    folder = results_of(config, 10) / "idk_nll"
    assert is_chosen(config, folder)
    for other in ({"rates": (1e-3,)}, {"seeds": (2,)}, {"epochs": (1,)}):
        assert not is_chosen(dataclasses.replace(config, **other), folder)

    text = table(config, config.out)
    assert text.count("\n| 10 % |") == 3
    draw(config, config.out, tmp_path / "figure.svg")
    assert "idk_nll" in (tmp_path / "figure.svg").read_text()
    page = tmp_path / "page.html"
    write_comparison({"forget 10 %": {n: c for (_, n), c in found.items()}}, page)
    assert "idk_nll" in page.read_text()
