"""What the README shows is run here, word for word, on tiny models."""

import re
import shlex
from pathlib import Path

import jax
import pytest
import tiny_world

from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.cli import main, parse
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.unlearning.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(verb: str) -> list[list[str]]:
    """Arguments of each `lt-mia VERB` line of the README."""
    found = []
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["lt-mia", verb]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize(
    ("pattern", "table"),
    [(r"takes any of (\d+)", METHODS), (r"\[(\d+) `model_type`s\]", FAMILIES)],
)
def test_counts_are_those_of_the_tables(pattern, table):
    assert re.findall(pattern, README) == [str(len(table))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which the README's paths exist, with tiny models behind them."""
    root = tmp_path_factory.mktemp("readme")
    world = tiny_world.build(root / "world")
    run = root / "runs" / "demo"
    for link, target in {
        run / "bases" / "mamba": world.base,
        run / "targets" / "mamba-ml_docs": world.target,
    }.items():
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    example = run / "example" / "ml_docs"
    write_texts(example / "texts.jsonl", tiny_world.read_rows(world.mixed))
    write_texts(example / "nonmembers.jsonl", tiny_world.read_rows(world.others))
    return root


def test_the_audit_command_runs_as_it_stands(demo, monkeypatch):
    monkeypatch.chdir(demo)
    (arguments,) = commands("audit")
    assert main([*arguments, "--length", "32", "--bootstraps", "50"]) == 0
    assert (demo / "runs" / "audit" / "report.html").stat().st_size > 10_000
    rows = tiny_world.read_rows(demo / "runs" / "audit" / "scores.jsonl")
    named = set(
        re.findall(r"`(\w+)`", README.split("`scores.jsonl` |")[1].split("\n")[0])
    )
    assert named == set(rows[0]) - {"label", "combination"}


def test_every_command_of_the_readme_parses(demo):
    verbs = "audit finetune extract train evaluate report syntofu unlearn benchmark"
    for verb in verbs.split():
        assert commands(verb), verb
        for arguments in commands(verb):
            assert type(parse(arguments)).__name__.lower() == verb


MODELS = blocks("python", (ROOT / "docs" / "models.md").read_text())


@pytest.mark.parametrize("index", range(len(MODELS)))
def test_the_examples_of_the_models_page_run(demo, monkeypatch, index):
    monkeypatch.chdir(demo)
    scope: dict = {}
    exec(compile(MODELS[index], "docs/models.md", "exec"), scope)
    ids, config = scope["ids"], scope["config"]
    match index:
        case 0:
            assert scope["logits"].shape == (*ids.shape, config.vocab_size)
            assert 0 < scope["loss"] < 20
        case 1:
            assert scope["log_probs"].shape == (2, 1, ids.shape[1] - 1)
            assert (scope["log_probs"][0] != scope["log_probs"][1]).any()
        case 2:
            shapes = [
                [leaf.shape for leaf in jax.tree.leaves(scope[name])]
                for name in ("gradient", "params")
            ]
            assert shapes[0] == shapes[1]
        case 3:
            assert set(scope["streams"]) == {0, config.layers}
            assert (scope["changed"] != scope["logits"]).any()
        case _:
            raise AssertionError("an example without a check")


def test_the_audit_in_python_runs(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    example, _ = blocks("python")
    # The models of this test are small, as for the command.
    small = example.replace("=known)", "=known, length=32, bootstraps=50)")
    assert small != example
    scope: dict = {}
    exec(compile(small, "README.md", "exec"), scope)
    result, texts = scope["result"], scope["texts"]
    assert result.p_values.shape == result.scores["lt_mia"].shape == (len(texts),)
    assert (result.q_values >= result.p_values).all()
    assert "p-value" in capsys.readouterr().out


def test_the_python_example_runs(demo, monkeypatch):
    monkeypatch.chdir(demo)
    _, example = blocks("python")
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["features"].shape == (1, scope["ids"].shape[1], 154)
    assert scope["ez"].shape == scope["min_k"].shape == (1,)
