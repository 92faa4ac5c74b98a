"""The commands of docs/your_files.md about texts run as they stand."""

import csv
import gzip
import re
import shlex
from pathlib import Path

import pytest
import tiny_world
from adapter_files import modules_of, write_adapter

from lt_mia_jax.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "your_files.md").read_text()
QUICK = {
    "audit": ["--length", "32", "--bootstraps", "20", "--attack", "none"],
    "finetune": ["--length", "16", "--epochs", "1"],
}


def commands(section: str) -> list[list[str]]:
    """Arguments of each `lt-mia` line of a section."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^lt-mia (.*)$", text.replace("\\\n", " "), flags=re.M)
    assert lines
    return [shlex.split(line) for line in lines]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with the models of the page."""
    monkeypatch.chdir(tmp_path)
    world = tiny_world.build(tmp_path / "world")
    (tmp_path / "my-base").symlink_to(world.base)
    (tmp_path / "my-model").symlink_to(world.target)
    return tmp_path, world


def run(section: str) -> None:
    for verb, *arguments in commands(section):
        assert main([verb, *arguments, *QUICK[verb]]) == 0, arguments


def test_other_file_formats(home):
    import pyarrow
    from pyarrow import parquet

    root, world = home
    texts = [row["text"] for row in tiny_world.read_rows(world.mixed)]
    known = tiny_world.read_rows(world.others)
    with open(root / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([["body"], *([text] for text in texts)])
    (root / "nonmembers.jsonl.gz").write_bytes(
        gzip.compress(world.others.read_bytes().replace(b'"text"', b'"body"'))
    )
    for number, text in enumerate(texts):
        path = root / "letters" / "old" / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "letters-set").mkdir()
    table = pyarrow.Table.from_pylist(known)
    parquet.write_table(table, root / "nonmembers.parquet")
    parquet.write_table(table, root / "letters-set" / "test-0.parquet")
    run("Other file formats")
    # The same texts give the same scores, whatever holds them.
    found = [
        tiny_world.read_rows(root / "runs" / x / "scores.jsonl")
        for x in ("csv", "folder")
    ]
    assert found[1][7]["id"] == "old/007.txt"
    same = ("scores", "p_value", "flags")
    pick = [[{name: row[name] for name in same} for row in rows] for rows in found]
    assert pick[0] == pick[1]
    assert len(pick[0]) == len(texts)


def test_a_lora_adapter(home):
    root, world = home
    write_adapter(root / "my-adapter", "my-base", modules_of(world.base, "c_attn"))
    for name, path in (("texts", world.mixed), ("nonmembers", world.others)):
        (root / f"{name}.jsonl").symlink_to(path)
    (root / "members.jsonl").symlink_to(world.members)
    run("A LoRA adapter")
    written = root / "my-tuned" / "adapter" / "adapter_model.safetensors"
    assert written.is_file()
