"""What the pages in docs/ show is run here, or at least exists."""

import importlib.util
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_world

from lt_mia_jax.cli import COMMANDS, main, parse
from lt_mia_jax.data.texts import write_texts

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
UNLEARNING = ROOT / "docs" / "unlearning.md"
METHOD = ROOT / "docs" / "howto" / "add_a_method.md"


def blocks(page: Path, language: str = r"\w*") -> list[str]:
    """Fenced blocks of a page, also those of its tabs."""
    found = re.findall(
        rf"^( *)```{language}[^\n]*\n(.*?)^\1```", page.read_text(), flags=re.S | re.M
    )
    return [
        "\n".join(line.removeprefix(indent) for line in body.splitlines())
        for indent, body in found
    ]


def shown(program: str) -> list[tuple[str, list[str]]]:
    """Page and arguments of every command line that starts with these words."""
    words, found = program.split(), []
    for page in PAGES:
        for block in blocks(page, "(?:bash)?"):
            for line in block.replace("\\\n", " ").splitlines():
                try:
                    given = shlex.split(line, comments=True)
                except ValueError:
                    continue  # prose
                if given[: len(words)] == words and "..." not in given:
                    found.append((page.name, given[len(words) :]))
    return found


@pytest.fixture
def method_file(tmp_path, monkeypatch):
    """The file of "Add an unlearning method", in the current folder."""
    (example,) = blocks(METHOD, "python")
    (tmp_path / "capped.py").write_text(example)
    monkeypatch.chdir(tmp_path)


def test_every_command_of_the_pages_parses(method_file):
    commands = shown("lt-mia")
    assert {arguments[0] for _, arguments in commands} >= set(COMMANDS) - {"demo"}
    for page, (verb, *arguments) in commands:
        try:
            found = parse([verb, *arguments])
        except SystemExit:
            pytest.fail(f"{page}: lt-mia {verb} {shlex.join(arguments)}")
        assert type(found).__name__ == COMMANDS[verb]


def test_every_module_and_file_of_the_pages_exists():
    modules = {
        name
        for page in PAGES
        for name in re.findall(
            r"python -m (experiments(?:[.][a-z_]+)*)(?=[ `])", page.read_text()
        )
    }
    assert len(modules) > 10
    assert {name for name in modules if not importlib.util.find_spec(name)} == set()
    files = {
        (page.name, name)
        for page in PAGES
        # Ends of benchmarks and decisions tell of what was then.
        if page.name not in ("benchmarks.md", "decisions.md")
        for name in re.findall(
            r"`((?:lt_mia_jax|tests|docs|experiments|tpu_setup)/[\w/]*(?:\.\w+)?)`",
            page.read_text(),
        )
    }
    assert len(files) > 10
    assert {each for each in files if not (ROOT / each[1]).exists()} == set()


def test_the_loop_of_the_unlearning_page_forgets_and_keeps():
    found = blocks(UNLEARNING, "python")
    assert len(found) == 3
    space = {}
    exec(found[0], space)
    before = space["params"]
    exec(found[1], space)

    def loss(params, batch):
        from lt_mia_jax.unlearning.objectives.likelihood import nll

        return float(nll(params, batch, apply_fn=space["model"].apply)[0])

    forget, retain = space["forget"], space["retain"]
    assert loss(space["params"], forget) > loss(before, forget) + 0.01
    assert loss(space["params"], retain) < loss(before, retain) + 0.001
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(space["params"]))
    exec(found[2], {})


def test_the_method_of_the_page_runs_on_the_command_line(method_file, tmp_path):
    world = tiny_world.build(tmp_path / "world")
    for name, path in {"forget": world.members, "retain": world.others}.items():
        rows = tiny_world.read_rows(path)[:8]
        write_texts(tmp_path / f"{name}.jsonl", rows)
    arguments = [
        *["unlearn", "--method", "capped.py:CappedAscent", "--method.ceiling", "4"],
        *["--model", str(world.base), "--out", "capped", "--evaluated", "0"],
        *["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--length", "16"],
        *["--epochs", "1", "--batch-size", "4"],
    ]
    assert main(arguments) == 0
    assert '"ceiling": 4.0' in (tmp_path / "capped" / "unlearning.json").read_text()
