"""The commands of docs/your_files.md about texts run as they stand."""

import csv
import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import pytest
import tiny_world
from adapter_files import modules_of, write_adapter
from chat_tokenizer import by_offsets, chat_tokenizer, conversation
from resized_models import resized
from served_model import Served, serving

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.checkpoints.tokenizer import load_tokenizer
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import read_texts, write_texts
from lt_mia_jax.features.statistics_file import TextRow
from lt_mia_jax.models import gpt2_like, mamba_like

PAGE = (Path(__file__).parents[2] / "docs" / "your_files.md").read_text()
QUICK = {
    "audit": ["--bootstraps", "20", "--attack", "none"],
    "collect": [],
    "finetune": ["--epochs", "1"],
}
LENGTH = ["--length", "32"]


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


CHATS = {
    "gpt2": gpt2_like(304, width=16, layers=1, heads=2, context=96),
    "mamba": mamba_like(304, 16, 1, state=4),
}


def write_chats(path: Path, seeds: range) -> None:
    rows = [{"messages": conversation(seed, turns=1, words=8)} for seed in seeds]
    write_texts(path, [{"id": str(n), **row} for n, row in enumerate(rows)])


@pytest.mark.parametrize("family", CHATS)
def test_chat_and_instruction_data(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tiny_world.save_pair(tmp_path / "made", CHATS[family], chat_tokenizer())
    for name, folder in zip(("my-chat-base", "my-chat-model"), made, strict=True):
        (tmp_path / name).symlink_to(folder)
    write_chats(tmp_path / "chats.jsonl", range(30))
    write_chats(tmp_path / "other-chats.jsonl", range(100, 130))
    words = tiny_world.sentences(7, 6)
    write_texts(
        tmp_path / "prompts.jsonl",
        [{"prompt": f"{x} the", "completion": " small river"} for x in words],
    )
    run("Chat and instruction data")
    tokenizer = load_tokenizer(made[1])
    rows = tiny_world.read_rows(tmp_path / "runs" / "chat" / "scores.jsonl")
    assert len(rows) == 30
    for seed, row in enumerate(rows):
        _, marks = by_offsets(tokenizer, conversation(seed, turns=1, words=8))
        assert row["n_tokens"] == min(sum(marks), 96)
        assert row["p_value"] is not None
    prompts = tiny_world.read_rows(tmp_path / "runs" / "prompts" / "scores.jsonl")
    count = len(tokenizer(f"{words[0]} the small river")["input_ids"])
    assert prompts[0]["n_tokens"] == min(count + 1, 32)
    # What was trained on reads as what it was.
    trained = read_texts(tmp_path / "my-chat-own" / "training" / "members.jsonl")
    known = {row.id: row.chat.fields for row in read_texts(tmp_path / "chats.jsonl")}
    assert trained
    for row in trained:
        assert row.chat.fields == known[row.id]


def test_beginning_of_text_tokens(home):
    root, world = home
    (root / "texts.jsonl").write_bytes(world.mixed.read_bytes())
    run("Beginning-of-text tokens")
    assert (root / "runs" / "bos" / "report.html").exists()


def link(root, world) -> None:
    for name in ("members", "nonmembers"):
        (root / f"{name}.jsonl").symlink_to(root / "world" / f"{name}.jsonl")
    (root / "texts.jsonl").symlink_to(world.others)


def run(section: str, server: str = "", length: list[str] = LENGTH) -> None:
    for verb, *arguments in commands(section):
        if server and "--server" in arguments:
            arguments[arguments.index("--server") + 1] = server
        quick = [*QUICK[verb], *(() if "--length" in arguments else length)]
        assert main([verb, *arguments, *quick]) == 0, arguments


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
    link(root, world)
    run("A LoRA adapter")
    written = root / "my-tuned" / "adapter" / "adapter_model.safetensors"
    assert written.is_file()


def test_a_resized_vocabulary(home):
    root, world = home
    resized(world.target, root / "my-resized", 1, "<pad>")
    link(root, world)
    run("A resized vocabulary")
    notes = json.loads((root / "runs/resized/summary.json").read_text())["notes"]
    assert any("301 token ids and the reference 300" in note for note in notes)


def test_served_models(home):
    root, world = home
    shutil.copy(world.members, root / "texts.jsonl")
    shutil.copy(world.others, root / "nonmembers.jsonl")
    models = {"my-base": world.base, "my-model": world.target}
    with serving(Served(**models)) as served:
        run("Served models", served.url, ["--length", "24"])
        assert len(served.asked) == 2 * 64
    one, other = (
        tiny_world.read_rows(root / f"{name}.jsonl")
        for name in ("reference", "reference-here")
    )
    assert [row["token_ids"] for row in one] == [row["token_ids"] for row in other]
    fields = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+)", PAGE.split("### What the files")[1], re.M
    )
    named = {name for cell in fields for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(TextRow._fields) >= set(other[0])
    summary = json.loads((root / "runs" / "served" / "summary.json").read_text())
    assert summary["combinations"][0]["target"] == "my-model"


def other_pair(root: Path, world: tiny_world.World, family: str) -> None:
    """Let the models of the page be of this family."""
    if family == "gpt2":
        return
    before = tiny_world.base_of(world, family)
    config, params, tokenizer = load_pretrained(before)
    grown = jax.tree.map(lambda x: 1.05 * x, params)
    save_pretrained(root / family, config, grown, tokenizer)
    for name, path in (("my-base", before), ("my-model", root / family)):
        (root / name).unlink()
        (root / name).symlink_to(path)


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_one_model_and_long_texts(home, family):
    root, world = home
    link(root, world)
    other_pair(root, world, family)
    run("No reference at hand")
    run("Long texts", length=["--length", "40"])
    alone, long = (
        tiny_world.read_rows(root / "runs" / name / "scores.jsonl")
        for name in ("alone", "windows")
    )
    assert not {"lt_mia", "ez", "reference"} & set(alone[0]["scores"])
    assert {"ez", "reference"} <= set(long[0]["scores"])
    for one, other in zip(alone, long, strict=True):
        assert one["p_value"] is not None
        assert other["p_value"] is not None
        assert one["n_tokens"] == 32 < 40 < other["n_tokens"]
