"""`lt-mia collect`, and the audit of what it wrote."""

import json

import numpy as np
import pytest
from served_model import WIDTH, Served, serving
from tiny_world import read_rows

from lt_mia_jax.audit import audit, load_pair
from lt_mia_jax.audit.completions import KEY
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import read_texts

LENGTH = ["--length", str(WIDTH)]
QUICK = [*LENGTH, "--bootstraps", "20"]


@pytest.fixture(scope="module")
def collected(world, tmp_path_factory):
    """A folder with what a server says of both models."""
    folder = tmp_path_factory.mktemp("collected")
    texts = ["--texts", str(world.mixed), str(world.others), *LENGTH]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, "secret-of-mine")
        with serving(Served(base=world.base, tuned=world.target)) as served:
            served.key = "secret-of-mine"
            for name in served.models:
                out = ["--out", str(folder / f"{name}.jsonl"), "--server", served.url]
                where = ["--model", name, "--tokenizer", str(world.base)]
                assert main(["collect", *out, *where, *texts, "--rate", "1000"]) == 0
    return folder


def test_an_audit_of_served_models_from_files_to_files(world, collected, tmp_path):
    texts = ["--texts", str(world.members), "--nonmembers", str(world.others)]
    files = ["--target-statistics", str(collected / "tuned.jsonl")]
    files += ["--reference-statistics", str(collected / "base.jsonl")]
    assert main(["audit", *files, *texts, "--out", str(tmp_path), *QUICK]) == 0
    direct = audit(
        load_pair(str(world.base), str(world.target)),
        read_texts(world.members),
        read_texts(world.others),
        length=WIDTH,
    )
    for i, row in enumerate(read_rows(tmp_path / "scores.jsonl")):
        assert len(row["scores"]) == 12
        for name, value in row["scores"].items():
            expected = direct.scores[name][i]
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4), name
        assert row["p_value"] == pytest.approx(direct.p_values[i])
        assert (row["id"], row["n_tokens"]) == (direct.ids[i], direct.n_tokens[i])
        assert tuple(row["flags"]) == direct.flags[i]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["title"] == "Audit of tuned"
    assert (found := summary["combinations"][0])["target"] == "tuned"
    assert found["reference"] == "base"
    read = [
        f"statistics of the {x}.jsonl" for x in ("target: tuned", "reference: base")
    ]
    assert set(read) < set(summary["fingerprints"])
    assert "What needs more is left out" in (tmp_path / "report.html").read_text()


def test_beside_the_file_stands_how_it_was_made(world, collected):
    record = json.loads((collected / "base.jsonl.run.json").read_text())
    assert record["command"] == record["config"]["type"].lower() == "collect"
    assert record["config"]["rate"] == 1000.0
    # The key stands in no file.
    assert sorted(path.name for path in collected.iterdir()) == [
        *("base.jsonl", "base.jsonl.run.json", "tuned.jsonl", "tuned.jsonl.run.json")
    ]
    assert all("secret" not in path.read_text() for path in collected.iterdir())


def test_a_model_here_gives_what_a_server_gives(world, collected, tmp_path):
    out = tmp_path / "base.jsonl"
    run = ["collect", "--model", str(world.base), "--out", str(out), *LENGTH]
    run += ["--texts", str(world.mixed), str(world.others)]
    assert main(run) == 0
    rows = read_rows(out)
    for one, other in zip(rows, read_rows(collected / "base.jsonl"), strict=True):
        for name in ("id", "token_ids", "ranks", "text", "truncated", "vocab_size"):
            assert one[name] == other[name]
        np.testing.assert_allclose(one["log_probs"], other["log_probs"], atol=1e-5)
    # Again, after a kill: the last row is made once more.
    out.write_bytes(out.read_bytes()[:-9])
    assert main(run) == 0
    assert [row["id"] for row in read_rows(out)] == [row["id"] for row in rows]


def test_what_is_refused(world, collected, tmp_path, capfd):
    texts, base = str(world.mixed), str(world.base)
    out, weights = tmp_path / "a.jsonl", f"{base}/model.safetensors"
    out.write_bytes((collected / "base.jsonl").read_bytes())
    before = out.read_bytes()
    (device := tmp_path / "endless").symlink_to("/dev/zero")
    run = ["collect", "--texts", texts, "--out", str(out), *LENGTH, "--model", base]
    server = ["--server", "http://127.0.0.1:9"]
    for arguments, words in (
        (run, f'{out}: holds something else (model "base", expected "{base}")'),
        ([*run, *server], "--server and --tokenizer belong together"),
        ([*run, "--tokenizer", base], "--server and --tokenizer belong together"),
        ([*run[:4], texts, *run[5:]], f"--out {texts}: is also read"),
        ([*run[:4], weights, *run[5:], "--overwrite"], f"--out {weights}: is also"),
        ([*run[:4], str(tmp_path), *run[5:]], "found a folder, expected the name"),
        ([*run[:4], f"{out}.gz", *run[5:]], "rows are appended as they stand"),
        ([*run[:4], str(device), *run[5:]], "found a pipe or device; name a file"),
        ([*run[:4], str(device), *run[5:], "--overwrite"], "found a pipe or device"),
        ([*run, "--column", "body"], "no 'body' field"),
        (
            [*run[:6], "65", *run[7:], "--overwrite"],
            "--length 65: the model has 64 positions",
        ),
        ([*run, "--rate", "0"], "--rate is 0.0, expected 0.001 to"),
        ([*run, "--timeout", "inf"], "--timeout is inf, expected 1 to"),
        ([*run, *server, "--tokenizer", str(tmp_path)], "no tokenizer"),
    ):
        capfd.readouterr()
        assert main(arguments) == 2
        said = capfd.readouterr().err.splitlines()
        assert words in said[-1]
        assert sum(line.startswith("lt-mia") for line in said) == 1
        assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "endless"}
    assert main([*run, "--overwrite"]) == 0
    assert {row["model"] for row in read_rows(out)} == {base}
