"""No command replaces what it did not write, or reads; a refusal leaves nothing."""

import dataclasses
import fcntl
import json
import os
import shutil
import typing
from pathlib import Path

import pytest

from lt_mia_jax.audit import results
from lt_mia_jax.cli import COMMANDS, command_module, main
from lt_mia_jax.outputs import LOCK, inputs
from lt_mia_jax.process import BAD_INPUT, UNAVAILABLE
from lt_mia_jax.report.rendering import render

QUICK = ["--length", "32", "--bootstraps", "20", "--attack", "none"]
PAIR = ["--reference", "m", "--target", "m"]
REQUIRED = {
    "audit": [*PAIR, "--texts", "t.jsonl"],
    "evaluate": ["--features", "m"],
    "extract": [*PAIR, "--members", "t.jsonl", "--nonmembers", "t.jsonl"],
    "train": ["--features", "m"],
    "finetune": ["--model", "m", "--texts", "t.jsonl"],
    "unlearn": ["--model", "m", "--forget", "t.jsonl"],
    "merge": ["--method", "mean", "--models", "m", "m"],
    "benchmark": ["--name", "tofu", "--local", "m"],
    "demo": [],
    "syntofu": [],
}
"""Flags that suffice to come to the folder: nothing of them exists."""


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(arguments, capfd, *words, code=BAD_INPUT):
    capfd.readouterr()
    assert main([str(word) for word in arguments]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert str(word) in lines[0]


@pytest.fixture(scope="module")
def audited(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("audited") / "out"
    texts = ["--texts", str(world.mixed), "--out", str(out)]
    assert main(["audit", *world.arguments(), *texts, *QUICK]) == 0
    return out


@pytest.fixture(autouse=True)
def _at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", REQUIRED)
@pytest.mark.parametrize(
    "name", ["notes.txt", "config.json", "run.json", "training/run.json", "report.html"]
)
def test_a_folder_of_somebody_else_is_refused(command, name, tmp_path, capfd):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"command": "' + command + '"}')
    before = tree(tmp_path)
    words = [path.relative_to(tmp_path / "out").parts[0], "--overwrite"]
    refused([command, *REQUIRED[command], "--out", "out"], capfd, *words)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", REQUIRED)
def test_a_run_of_another_command_is_refused(command, tmp_path, capfd):
    for home in ("out", "out/training"):
        (tmp_path / home).mkdir(exist_ok=True)
        record = {"command": "other", "versions": {"lt_mia_jax": "0.1"}}
        (tmp_path / home / "run.json").write_text(json.dumps(record))
    before = tree(tmp_path)
    out = ["--out", "out"]
    refused([command, *REQUIRED[command], *out], capfd, "a run of other")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", [*REQUIRED][:7])
@pytest.mark.parametrize("exists", [False, True])
def test_a_refused_command_leaves_no_folder(command, exists, tmp_path, capfd):
    """Its inputs are missing."""
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    before = tree(tmp_path)
    refused([command, *REQUIRED[command], "--out", out], capfd)
    assert tree(tmp_path) == before


INPUTS = {
    "audit": (
        *("reference", "target", "reference-statistics", "target-statistics"),
        *("texts", "nonmembers", "attack"),
    ),
    "evaluate": ("features", "attack"),
    "extract": ("reference", "target", "members", "nonmembers"),
    "train": ("features",),
    "finetune": ("model", "texts", "validation"),
    "unlearn": (
        *("model", "forget", "retain", "refusals", "holdout", "retrained", "probes"),
        *("retrained-again", "utility", "reference", "attack", "muse"),
    ),
    "benchmark": ("local",),
}


@pytest.mark.parametrize(
    ("command", "flag"), [(name, flag) for name in INPUTS for flag in INPUTS[name]]
)
@pytest.mark.parametrize("link", [False, True])
def test_inputs_are_never_outputs(command, flag, link, tmp_path, capfd):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("kept")
    before = tree(tmp_path)
    arguments = dict(zip(*[iter(REQUIRED[command])] * 2, strict=True))
    arguments |= {f"--{flag}": "kept/../kept"}
    flags = [word for pair in arguments.items() for word in pair]
    out = "link" if link else "kept"
    refused([command, *flags, "--out", out, "--overwrite"], capfd, out, f"--{flag}")
    assert tree(tmp_path) == before


def test_flags_that_name_paths_are_known_as_inputs():
    """A new flag is either an input or listed here."""
    others = {"name", "corpus", "distributed", "prompt", "separator", "targets"}
    others |= {"parts", "skewed", "column", "server"}
    for command, name in COMMANDS.items():
        cls = getattr(command_module(command), name)
        for field in strings(cls):
            assert field in others, (command, field)


def strings(cls):
    """Fields of type str, or several, that are not marked as inputs."""
    for field in dataclasses.fields(cls):
        inner = [field.type, *typing.get_args(field.type)]
        for each in inner:
            if dataclasses.is_dataclass(each):
                yield from strings(each)
        if str in inner and "Annotated" not in str(field.type):
            yield field.name


def test_a_file_of_the_folder_is_no_input(world, audited, tmp_path, capfd):
    shutil.copytree(audited, "out")
    texts = tmp_path / "out" / "texts.jsonl"
    texts.write_text(world.mixed.read_text())
    same = ["audit", *world.arguments(), *QUICK, "--out", "out", "--texts"]
    before = tree(tmp_path)
    for flags in ([], ["--overwrite"]):
        words = ("--texts out/scores.jsonl", "--out out")
        refused([*same, "out/scores.jsonl", *flags], capfd, *words)
    assert tree(tmp_path) == before
    # One that is not written there may stand in it.
    assert main([*same, "out/texts.jsonl"]) == 0
    assert texts.read_text() == world.mixed.read_text()


def test_overwriting_replaces_files_of_the_same_names(world, audited, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("notes.txt", "report.html"):
        (tmp_path / "out" / name).write_text("mine")
    run = ["audit", *world.arguments(), *QUICK, "--texts", str(world.mixed)]
    assert main([*run, "--out", "out", "--overwrite"]) == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert {path.name for path in audited.iterdir()} == (
        {path.name for path in (tmp_path / "out").iterdir()} - {"notes.txt"}
    )
    assert main([*run, "--out", "out"]) == 0  # it is its own now


def test_a_refused_overwriting_does_not_take_the_folder(world, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    before = tree(tmp_path)
    run = ["audit", *world.arguments(), *QUICK, "--texts", "none", "--out", "out"]
    refused([*run, "--overwrite"], capfd, "none")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", [["--out", ""], ["--out="]])
@pytest.mark.parametrize("command", [*REQUIRED, "report"])
def test_an_empty_name_is_refused(command, out, tmp_path, capfd):
    required = {**REQUIRED, "report": ["--runs", "r"]}[command]
    refused([command, *required, *out], capfd, "--out: found an empty name")
    assert not tree(tmp_path)


def test_a_page_replaces_only_a_page(audited, tmp_path, capfd):
    shutil.copytree(audited, "run")
    for name in ("page.html", "scores.jsonl"):
        (tmp_path / name).write_text("<p>mine")
    before = tree(tmp_path)
    report = ["report", "--runs", "run", "--out"]
    for name in ("page.html", "scores.jsonl", "run/run.json"):
        refused([*report, name], capfd, name, "--overwrite")
    for name in ("scores.jsonl", "summary.json", "card.json"):
        refused([*report, f"run/{name}", "--overwrite"], capfd, name, "also read")
    refused([*report, "run"], capfd, "also read")
    refused([*report, "new/page.html", "--runs", "none"], capfd, "none")
    assert tree(tmp_path) == before
    assert main([*report, "page.html", "--overwrite"]) == 0
    for name in ("page.html", "run/report.html", "new/page.html"):
        assert main([*report, name]) == 0
        assert (tmp_path / name).read_text() == render([Path("run")])
    assert {*tree(tmp_path)} - {*before} == {"new", "new/page.html"}


def test_a_summary_belongs_to_its_scores(world, audited, tmp_path, capfd):
    shutil.copytree(audited, "run")
    scores = tmp_path / "run" / "scores.jsonl"
    rows = scores.read_text().splitlines()
    scores.write_text("\n".join(rows[::-1]) + "\n")
    report = ["report", "--runs", "run", "--out", "page.html"]
    refused(report, capfd, "run/scores.jsonl", "SHA-256", "two runs")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["scores.jsonl", "summary.json"])
def test_a_stop_between_two_files_mixes_no_runs(
    name, world, audited, tmp_path, monkeypatch, capfd
):
    """The second run has another target; it stops after a file."""
    shutil.copytree(audited, "run")
    write = results.write_atomic if name == "scores.jsonl" else results.write_json

    def stop(path, *args):
        write(path, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(results, write.__name__, stop)
    pair = ["--reference", str(world.target), "--target", str(world.base)]
    run = ["audit", *pair, *QUICK, "--texts", str(world.mixed), "--out", "run"]
    assert main(run) == 130
    assert not (tmp_path / "run" / "report.html").exists()
    flags = json.loads((tmp_path / "run" / "config.json").read_text())
    assert flags["target"] == str(world.base)
    report = ["report", "--runs", "run", "--out", "page.html"]
    if name == "scores.jsonl":
        refused(report, capfd, "run/summary.json: no such file")
    else:
        assert main(report) == 0
        assert "Audit of base" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("command", REQUIRED)
def test_one_command_at_a_time(command, tmp_path, capfd):
    out = tmp_path / "out"
    out.mkdir()
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = tree(tmp_path)
        run = [command, *REQUIRED[command], "--out", "out"]
        refused(run, capfd, "another command is writing to out", code=UNAVAILABLE)
        assert tree(tmp_path) == before


def test_one_report_at_a_time(audited, tmp_path, capfd):
    with (tmp_path / ".page.html.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = ["report", "--runs", audited, "--out", "page.html"]
        refused(run, capfd, "another command is writing", code=UNAVAILABLE)
    assert main([str(word) for word in run]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_rerun_removes_what_a_kill_left(world, audited, tmp_path):
    """Names that this package makes, of files that this command writes."""
    shutil.copytree(audited, "out")
    left = [".report.html.x4w4____.tmp", ".scores.jsonl.abcdefgh.tmp", LOCK, ".shared"]
    kept = [".mine.txt.abcdefgh.tmp", ".report.html.tmp", "report.html.x4w4____.tmp"]
    for name in (*left, *kept):
        (tmp_path / "out" / name).touch()
    run = ["audit", *world.arguments(), *QUICK, "--texts", str(world.mixed)]
    assert main([*run, "--out", "out"]) == 0
    names = {path.name for path in audited.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, *kept}
    # A kill before the first record leaves a folder that is still new.
    (tmp_path / "new").mkdir()
    for name in (LOCK, ".run.json.abcdefgh.tmp"):
        (tmp_path / "new" / name).touch()
    assert main([*run, "--out", "new"]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == names


def test_temporary_files_of_a_training_run(world, tmp_path):
    run = ["finetune", "--model", str(world.base), "--texts", str(world.members)]
    run += ["--length", "16", "--epochs", "1", "--out", "out"]
    mask = os.umask(0)
    try:
        assert main(run) == 0
    finally:
        os.umask(mask)
    before = set(tree(tmp_path))
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*.jsonl")}
    assert modes == {
        "members.jsonl": 0o600,
        "validation.jsonl": 0o600,
        "history.jsonl": 0o666,
    }
    state = tmp_path / "out" / "training" / "state"
    (state / ".saving.json.12345678.tmp").touch()
    (state / "9.orbax-checkpoint-tmp-1" / "d").mkdir(parents=True)
    (tmp_path / "out" / ".model.safetensors.abcd_123.tmp").touch()
    (tmp_path / "out" / "training" / "audit").mkdir()  # another run, at work
    for name in (LOCK, ".scores.jsonl.12345678.tmp"):
        (tmp_path / "out" / "training" / "audit" / name).touch()
    assert main(run) == 0
    after = {name for name in tree(tmp_path) if "/audit" not in name}
    assert after == before
    assert len(list((tmp_path / "out" / "training" / "audit").iterdir())) == 2


def test_data_that_belongs_together_is_not_mixed(tmp_path, capfd):
    made = "--data.background 2 --data.fictitious 4 --data.retain-evaluated 2".split()
    made += ["--data.forget-percent", "25", "--seeds", "0", "--width", "16"]
    made += ["--layers", "1", "--pretrain-epochs", "1", "--finetune-epochs", "1"]
    assert main(["syntofu", *made, "--out", "out"]) == 0
    before = tree(tmp_path)
    for path in (tmp_path / "out" / "data").glob("*.jsonl"):
        assert path.stat().st_mode & 0o777 == 0o600
    other = [*made, "--data.seed", "1", "--out", "out"]
    refused(["syntofu", *other], capfd, "another data")
    assert tree(tmp_path) == before


def test_inputs_of_nested_flags():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        holdout: Path | None = Path("h")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        out: Path = Path("o")
        runs: tuple[Path, ...] = (Path("a"), Path("b"))
        name: str = "n"
        inner: Inner = dataclasses.field(default_factory=Inner)

    assert list(inputs(Outer())) == [
        ("runs", Path("a")),
        ("runs", Path("b")),
        ("holdout", Path("h")),
    ]
