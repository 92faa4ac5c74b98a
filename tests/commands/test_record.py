"""What a run has read is on record, and a run that goes on reads the same."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny_world
from tiny_world import read_rows

from lt_mia_jax import provenance
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts

QUICK = ["--length", "32", "--bootstraps", "20", "--attack", "none"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def flip(path: Path, at: int = -7) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def own(world, tmp_path) -> tiny_world.World:
    """A world that a test may change."""
    return tiny_world.World(
        shutil.copytree(world.root, tmp_path / "world"),
        *(
            tmp_path / "world" / path.relative_to(world.root)
            for path in (
                *(world.base, world.target, world.members),
                *(world.nonmembers, world.mixed, world.others),
            )
        ),
    )


def test_an_audit_says_what_it_audited(own, tmp_path):
    out = tmp_path / "out"
    texts = ["--texts", str(own.mixed), "--nonmembers", str(own.others)]

    def audit() -> dict:
        arguments = [*own.arguments(), *texts, *QUICK, "--out", str(out)]
        assert main(["audit", *arguments]) == 0
        return read(out / "summary.json")["fingerprints"]

    before = audit()
    weights = own.target / "model.safetensors"
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert before[f"{own.target}: model.safetensors"] == expected
    reads = read(out / "run.json")["reads"]
    assert reads[str(own.mixed)] == hashlib.sha256(own.mixed.read_bytes()).hexdigest()
    assert {str(own.base), str(own.target), str(own.others)} <= set(reads)
    page = (out / "report.html").read_text()
    assert expected in page

    flip(weights)
    changed = read_rows(own.mixed)
    rows = [{"id": f"{n}", **row} for n, row in enumerate(changed)]
    write_texts(own.mixed, rows)
    first = audit()
    rows[3]["text"] = rows[3]["text"].replace("the", "a", 1) + " more"
    write_texts(own.mixed, rows)
    second = audit()
    assert first[f"{own.target}: model.safetensors"] != expected
    assert first["texts"] == second["texts"]
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"texts and contents"}


def finetune(own, out, *more) -> int:
    arguments = ["--model", str(own.base), "--texts", str(own.members), "--length"]
    arguments += ["32", "--epochs", "1", "--save-seconds", "0", "--out", str(out)]
    return main(["finetune", *arguments, *more])


def test_a_run_does_not_go_on_from_a_changed_base(own, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetune(own, out) == 0
    weights = (out / "model.safetensors").read_bytes()
    # One bit that no sample of the weights shows.
    flip(own.base / "model.safetensors")
    assert finetune(own, out) == 2
    error = capsys.readouterr().err
    assert f"its run has read another {own.base}" in error
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_run_under_other_versions_names_both(own, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert finetune(own, out) == 0
    began = read(out / "training" / "run.json")
    newer = {**provenance.versions(), "jax": "99.0"}
    monkeypatch.setattr(provenance, "versions", lambda: newer)
    assert finetune(own, out) == 0
    warned = f"jax {began['versions']['jax']} (now 99.0)"
    assert warned in capsys.readouterr().err
    record = read(out / "training" / "run.json")
    assert record["versions"]["jax"] == "99.0"
    [earlier] = record["continues"]
    assert earlier["versions"] == began["versions"]
    assert earlier["started"] == began["started"]
