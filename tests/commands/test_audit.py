"""`lt-mia audit` from files to files."""

import json

import jax
import numpy as np
import pytest
from scipy.stats import rankdata
from tiny_world import read_rows, sentences

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts

QUICK = ["--length", "32", "--bootstraps", "50"]


@pytest.fixture(scope="module")
def audited(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    arguments = ["--texts", str(world.mixed), "--nonmembers", str(world.others)]
    code = main(["audit", *world.arguments(), *arguments, "--out", str(out), *QUICK])
    assert code == 0
    return out


def test_rows_follow_the_texts(world, audited):
    texts, found = read_rows(world.mixed), read_rows(audited / "scores.jsonl")
    assert [row["label"] for row in found] == [row["label"] for row in texts]
    assert all(row["flags"] == ["truncated"] for row in found)
    assert {len(row["scores"]) for row in found} == {17}
    assert all(row["n_tokens"] == 32 for row in found)


def test_auc_in_the_summary_is_that_of_the_rows(audited):
    found = read_rows(audited / "scores.jsonl")
    summary = json.loads((audited / "summary.json").read_text())
    labels = np.array([row["label"] for row in found])
    for name, table in summary["combinations"][0]["attacks"].items():
        ranks = rankdata([row["scores"][name] for row in found])
        n1, n0 = labels.sum(), (1 - labels).sum()
        expected = (ranks[labels == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
        assert table["auc"]["value"] == pytest.approx(expected, abs=1e-9), name


def test_p_values_count_the_calibration_scores(world, audited, tmp_path):
    found = read_rows(audited / "scores.jsonl")
    arguments = ["--texts", str(world.others), "--out", str(tmp_path), *QUICK]
    assert main(["audit", *world.arguments(), *arguments]) == 0
    known = [row["scores"]["lt_mia"] for row in read_rows(tmp_path / "scores.jsonl")]
    for row in found:
        above = sum(score >= row["scores"]["lt_mia"] for score in known)
        assert row["p_value"] == pytest.approx((1 + above) / (1 + len(known)))
        assert row["q_value"] >= row["p_value"] - 1e-12


def test_without_a_learned_attack(world, audited, tmp_path):
    arguments = ["--texts", str(world.mixed), "--out", str(tmp_path), *QUICK]
    assert main(["audit", *world.arguments(), *arguments, "--attack", "none"]) == 0
    for row, full in zip(
        read_rows(tmp_path / "scores.jsonl"),
        read_rows(audited / "scores.jsonl"),
        strict=True,
    ):
        expected = {n: x for n, x in full["scores"].items() if n != "lt_mia"}
        assert row["scores"] == expected
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert any("EZ-MIA" in note for note in summary["notes"])


def as_good_as_its_reference(source, destination):
    """A copy that differs at a position which short texts do not reach."""
    config, params, tokenizer = load_pretrained(source)

    def move(leaf):
        return leaf.at[-1].add(1.0) if leaf.shape == (64, 16) else leaf

    params = jax.tree.map(move, params)
    save_pretrained(destination, config, params, tokenizer)


def test_texts_without_evidence_for_ez_are_counted(world, tmp_path):
    texts = [{"text": text} for text in ["", *sentences(9, 3)]]
    write_texts(tmp_path / "texts.jsonl", texts)
    arguments = ["--texts", str(tmp_path / "texts.jsonl"), "--attack", "none"]
    arguments += ["--reference", str(world.base), "--target"]
    notes = {}
    same = tmp_path / "same"
    as_good_as_its_reference(world.base, same)
    for target in (same, world.target):
        out = tmp_path / "audits" / target.name
        where = [str(target), "--out", str(out)]
        assert main(["audit", *arguments, *where, *QUICK]) == 0
        found = json.loads((out / "summary.json").read_text())["notes"]
        notes[target] = [note for note in found if "gives 0" in note]
    # A model that predicts as its reference is nowhere worse; the tuned one is.
    assert "3 of 4 texts" in notes[same][0]
    assert not notes[world.target]


def test_without_labels_nobody_is_accused(world, tmp_path):
    arguments = ["--texts", str(world.others), "--out", str(tmp_path), *QUICK]
    assert main(["audit", *world.arguments(), *arguments]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dataset"] is None
    assert summary["combinations"][0]["attacks"] == {}
    assert "no text" in " ".join(summary["verdict"])
    assert "p_value" not in read_rows(tmp_path / "scores.jsonl")[0]


def test_odd_texts_are_flagged_and_do_not_touch_others(world, tmp_path):
    plain = sentences(9, 3)
    odd = ["", "x", "\N{PILE OF POO}" * 5, "word " * 200_000, "  \n "]
    for name, texts in (("plain", plain), ("odd", plain + odd)):
        write_texts(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        arguments = ["--texts", str(tmp_path / f"{name}.jsonl"), "--out"]
        out = tmp_path / name
        assert main(["audit", *world.arguments(), *arguments, str(out), *QUICK]) == 0
    alone = read_rows(tmp_path / "plain" / "scores.jsonl")
    mixed = read_rows(tmp_path / "odd" / "scores.jsonl")
    for one, other in zip(alone, mixed, strict=False):
        for name, value in one["scores"].items():
            assert other["scores"][name] == pytest.approx(value, rel=1e-4), name
    # White space alone repeats the empty text, and counts once with it.
    empty, letter, emoji, long = mixed[3:]
    assert empty["flags"] == ["empty: no score"]
    assert set(empty["scores"].values()) == {None}
    assert any("short" in flag for flag in letter["flags"])
    assert letter["scores"]["loss"] is not None
    assert emoji["scores"]["loss"] is not None
    assert "truncated" in long["flags"]


def test_shared_texts_leave_the_calibration(world, tmp_path):
    arguments = ["--texts", str(world.mixed), "--nonmembers", str(world.mixed)]
    code = main(
        ["audit", *world.arguments(), *arguments, "--out", str(tmp_path), *QUICK]
    )
    assert code == 2
