"""A mistake ends with code 2 and one line that names the file; never a traceback."""

import json
import shutil

import pytest
from tiny_world import poison

from lt_mia_jax.checkpoints import save_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.models import LanguageModel, gpt2_like


def write(path, content: bytes):
    path.write_bytes(content)
    return path


FILES = {
    "missing": (None, ["no such file"]),
    "empty": (b"", ["no texts"]),
    "blank": (b"\n\n", ["no texts"]),
    "not JSON": (b'{"text": "a"}\nhello\n', [":2", "not JSON"]),
    "no text": (b'{"text": "a"}\n{"body": "b"}\n', [":2", "'text'", "body"]),
    "text is a number": (b'{"text": 3}\n', [":1", "number", "string"]),
    "invalid UTF-8": (b'{"text": "a"}\n{"text": "\xff"}\n', [":2", "UTF-8"]),
    "bad label": (b'{"text": "a", "label": 7}\n', [":1", "label"]),
    "some labels": (b'{"text": "a", "label": 1}\n{"text": "b"}\n', ["label", "2"]),
    "same id": (b'{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', [":2", "id"]),
}


def expect_one_line(capfd, arguments, words):
    capfd.readouterr()
    assert main(arguments) == 2
    lines = [
        line
        for line in capfd.readouterr().err.splitlines()
        if not line.startswith(("loading the ", "Texts begin "))
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lt-mia: error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("case", FILES)
def test_audit_refuses_text_files(case, world, tmp_path, capfd):
    content, words = FILES[case]
    path = tmp_path / "texts.jsonl"
    if content is not None:
        write(path, content)
    arguments = ["--texts", str(path), "--out", str(tmp_path / "out")]
    expect_one_line(
        capfd, ["audit", *world.arguments(), *arguments], [str(path), *words]
    )
    assert not (tmp_path / "out" / "scores.jsonl").exists()


@pytest.mark.parametrize("case", [c for c in FILES if c != "some labels"])
def test_extract_refuses_text_files(case, world, tmp_path, capfd):
    content, words = FILES[case]
    path = tmp_path / "texts.jsonl"
    if content is not None:
        write(path, content)
    files = ["--members", str(world.members), "--nonmembers", str(path)]
    arguments = [*files, "--out", str(tmp_path / "out")]
    expect_one_line(
        capfd, ["extract", *world.arguments(), *arguments], [str(path), *words]
    )


def truncated(world, path):
    shutil.copytree(world.target, path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def no_config(world, path):
    shutil.copytree(world.target, path)
    (path / "config.json").unlink()


def broken_config(world, path):
    shutil.copytree(world.target, path)
    (path / "config.json").write_text("{")


def unknown_type(world, path):
    shutil.copytree(world.target, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))


def no_tokenizer(world, path):
    shutil.copytree(world.target, path)
    for file in path.glob("token*"):
        file.unlink()


def save_other(path, tokens: int, rows: int):
    config = gpt2_like(rows, width=16, layers=2, heads=2, context=64)
    tokenizer = train_bpe(["some other text here " * 40], vocab_size=tokens)
    import jax

    save_pretrained(path, config, LanguageModel(config).init(jax.random.key(2)), None)
    tokenizer.save_pretrained(str(path))


MODELS = {
    "no directory": (lambda world, path: None, ["other"]),
    "NaN weight": (lambda world, path: poison(world.target, path), ["NaN"]),
    "truncated weights": (truncated, ["model.safetensors"]),
    "no config": (no_config, ["config.json"]),
    "broken config": (broken_config, ["config.json"]),
    "unknown model type": (unknown_type, ["t5", "gpt2"]),
    "no tokenizer": (no_tokenizer, ["tokenizer"]),
    "other vocabulary": (
        lambda world, path: save_other(path, 270, 270),
        ["tokenizers", "differ", "id"],
    ),
    "tokenizer beyond the embedding": (
        lambda world, path: (
            shutil.copytree(world.target, path),
            _grow_tokenizer(path),
        ),
        ["'t '", "id 300", "300 ids"],
    ),
}


def _grow_tokenizer(path):
    content = json.loads((path / "tokenizer.json").read_text())
    token = {"id": 300, "content": "t ", "special": False, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(token)
    (path / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("command", ["audit", "extract"])
@pytest.mark.parametrize("case", MODELS)
def test_commands_refuse_models(case, command, world, tmp_path, capfd):
    make, words = MODELS[case]
    other = tmp_path / "other"
    make(world, other)
    files = {
        "audit": ["--texts", str(world.mixed)],
        "extract": ["--members", str(world.members), "--nonmembers", str(world.others)],
    }
    arguments = [
        command,
        *("--reference", str(world.base), "--target", str(other)),
        *files[command],
        *("--out", str(tmp_path / "out"), "--length", "64"),
    ]
    expect_one_line(capfd, arguments, words)


def test_a_text_on_both_sides_is_refused(world, tmp_path, capfd):
    files = ["--members", str(world.members), "--nonmembers", str(world.mixed)]
    arguments = ["extract", *world.arguments(), *files, "--out", str(tmp_path / "o")]
    expect_one_line(capfd, arguments, [str(world.mixed), "line 1"])


def test_a_length_beyond_the_positions_names_the_flag(world, tmp_path, capfd):
    out = ["--out", str(tmp_path / "out"), "--length", "65"]
    sides = ["--members", str(world.members), "--nonmembers", str(world.nonmembers)]
    words = ["--length 65", "64 positions", "--length 64 or less"]
    for arguments in (
        ["audit", *world.arguments(), "--texts", str(world.mixed)],
        ["extract", *world.arguments(), *sides],
        ["finetune", "--model", world.arguments()[1], "--texts", str(world.members)],
    ):
        expect_one_line(capfd, [*arguments, *out], words)


def test_an_output_folder_that_is_a_file(world, tmp_path, capfd):
    path = write(tmp_path / "out", b"")
    arguments = ["--texts", str(world.mixed), "--out", str(path)]
    expect_one_line(capfd, ["audit", *world.arguments(), *arguments], [str(path)])


def test_too_few_nonmembers(world, tmp_path, capfd):
    write_texts(tmp_path / "few.jsonl", [{"text": f"t {i}"} for i in range(5)])
    files = ["--texts", str(world.mixed), "--nonmembers", str(tmp_path / "few.jsonl")]
    arguments = ["audit", *world.arguments(), *files, "--out", str(tmp_path / "o")]
    expect_one_line(capfd, arguments, ["few.jsonl", "20"])


def test_an_attack_that_is_none(world, tmp_path, capfd):
    (tmp_path / "attack").mkdir()
    for path, words in (("attack", ["manifest"]), ("elsewhere", ["`shipped`"])):
        files = ["--texts", str(world.mixed), "--attack", str(tmp_path / path)]
        arguments = ["audit", *world.arguments(), *files, "--out", str(tmp_path / "o")]
        expect_one_line(capfd, arguments, [str(tmp_path / path), *words])


def test_evaluation_of_no_attack(tmp_path, capfd):
    arguments = ["evaluate", "--attack", "none", "--features", str(tmp_path)]
    expect_one_line(capfd, [*arguments, "--out", str(tmp_path / "o")], ["--attack"])
