"""The audit as a function, against the files of the command and plain loops."""

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_world import read_rows, sentences

import lt_mia_jax.audit
from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.scores import table
from lt_mia_jax.audit import audit, write_result
from lt_mia_jax.audit.records import RunSummary
from lt_mia_jax.cli import main
from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.data.texts import read_texts
from lt_mia_jax.errors import InputError
from lt_mia_jax.report import write_report

ROOT = Path(__file__).parents[2]
QUICK = {"length": 32, "bootstraps": 50}


@pytest.fixture(scope="module")
def result(world, pair):
    texts, known = read_texts(world.mixed), read_texts(world.others)
    return audit(pair, texts, known, name="mixed", **QUICK)


def test_the_command_writes_what_the_function_finds(world, result, tmp_path):
    files = ["--texts", str(world.mixed), "--nonmembers", str(world.others)]
    quick = ["--length", "32", "--bootstraps", "50", "--out", str(tmp_path)]
    assert main(["audit", *world.arguments(), *files, *quick]) == 0
    rows = read_rows(tmp_path / "scores.jsonl")
    assert [row["id"] for row in rows] == list(result.ids)
    assert [row["label"] for row in rows] == result.labels.tolist()
    assert [row["n_tokens"] for row in rows] == result.n_tokens.tolist()
    assert [row["flags"] for row in rows] == [list(flags) for flags in result.flags]
    for i, row in enumerate(rows):
        assert row["scores"] == {n: float(x[i]) for n, x in result.scores.items()}
        assert row["p_value"] == result.p_values[i]
        assert row["q_value"] == result.q_values[i]
        assert row["probability"] == pytest.approx(
            1 / (1 + math.exp(-row["scores"]["lt_mia"])), rel=1e-14
        )
    written = json.loads((tmp_path / "summary.json").read_text())
    summary = from_dict(RunSummary, written)
    assert summary.verdict == result.verdict
    assert summary.notes == result.notes
    assert summary.dataset == result.dataset
    assert summary.calibration == result.calibration
    assert summary.fingerprints == result.fingerprints
    [found], [expected] = summary.combinations, result.combinations
    assert found.attacks == expected.attacks
    assert found.controls == expected.controls
    assert found.loss_gap_nats == expected.loss_gap_nats


def test_p_and_q_values_by_counting(world, pair, result):
    known = audit(pair, read_texts(world.others), **QUICK)
    outside = known.scores["lt_mia"].tolist()
    p_values = []
    for score in result.scores["lt_mia"].tolist():
        reached = 0
        for other in outside:
            reached += other >= score
        p_values.append((1 + reached) / (1 + len(outside)))
    np.testing.assert_allclose(result.p_values, p_values, rtol=1e-12)
    for p, q in zip(p_values, result.q_values, strict=True):
        selections = [
            t * len(p_values) / sum(x <= t for x in p_values)
            for t in p_values
            if t >= p
        ]
        assert q == pytest.approx(min(1, *selections))
    low = sum(p <= 0.05 for p in p_values)
    assert any(line.startswith(f"{low} of {len(p_values)}") for line in result.verdict)
    assert known.p_values is None
    assert "accuses no text" in known.verdict[0]


def test_strings_are_texts_without_labels(pair, world):
    rows = read_texts(world.mixed)
    records = audit(pair, [row._replace(label=None) for row in rows], **QUICK)
    plain = audit(pair, [row.text for row in rows], **QUICK)
    assert plain.labels is None
    assert not plain.combinations[0].attacks
    np.testing.assert_array_equal(plain.scores["ez"], records.scores["ez"])


def test_without_a_learned_attack_the_verdict_rests_on_ez(pair, world):
    found = audit(pair, read_texts(world.mixed), attack=None, **QUICK)
    assert found.primary == "ez"
    assert found.probability is None
    assert "lt_mia" not in found.scores
    assert any("EZ-MIA" in note for note in found.notes)


def test_without_a_reference_scores_of_the_target_alone(world, pair, tmp_path):
    files = ["--texts", str(world.mixed), "--nonmembers", str(world.others)]
    quick = ["--length", "32", "--bootstraps", "50", "--out", str(tmp_path)]
    assert main(["audit", "--target", str(world.target), *files, *quick]) == 0
    whole = audit(pair, read_texts(world.mixed), read_texts(world.others), **QUICK)
    rows = read_rows(tmp_path / "scores.jsonl")
    alone = {s.name for s in table.SCORES if "reference" not in s.needs}
    assert all(set(row["scores"]) == alone for row in rows)
    for name in alone:
        found = [row["scores"][name] for row in rows]
        np.testing.assert_allclose(found, whole.scores[name], rtol=1e-4, atol=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["primary"] == "min_k_plus_plus"
    assert summary["combinations"][0]["reference"] == "none"
    assert all(row["p_value"] is not None for row in rows)
    assert any(row["probability"] is None for row in rows)
    assert "No reference" in (tmp_path / "report.html").read_text()


def test_what_a_missing_reference_costs_is_what_the_study_found(pair, world):
    found = audit(pair._replace(reference=None), read_texts(world.mixed), **QUICK)
    [note] = [note for note in found.notes if "No reference" in note]
    page = (ROOT / "docs" / "results.md").read_text()
    for name in ("LT-MIA", "Min-K%++"):
        row = next(x for x in page.splitlines() if x.startswith(f"| {name} | 0."))
        area, rate = map(float, row.split("|")[6].split("/"))
        assert f"{area:.3f}".lstrip("0") in note
        assert f"{100 * rate:.0f} %" in note


def test_what_is_refused(pair):
    texts = sentences(9, 30)
    with pytest.raises(InputError, match="no texts"):
        audit(pair, [])
    with pytest.raises(InputError, match="0 usable non-members"):
        audit(pair, texts, texts)
    with pytest.raises(InputError, match="no such file"):
        audit(pair, texts, attack="nowhere")
    with pytest.raises(InputError, match="give --reference too"):
        audit(pair._replace(reference=None), texts, attack="nowhere")
    with pytest.raises(InputError, match="alpha = nan, expected more than 0"):
        audit(pair, texts, alpha=math.nan, seed=-1)


def test_the_package_is_the_function(pair):
    module = lt_mia_jax.audit
    assert inspect.signature(module) == inspect.signature(audit)
    assert lt_mia_jax.audit.scoring.load_pair is lt_mia_jax.audit.load_pair
    found = module(pair, sentences(9, 3), attack=None, **QUICK)
    assert len(found.ids) == 3


def test_a_new_score_is_one_function_and_one_row(pair, world, tmp_path, monkeypatch):
    def last_token(stats):
        """Log-probability of the last token.

        Source: nowhere.
        """
        last = stats.valid.sum(axis=1) - 1
        rows = np.arange(len(last))
        return np.where(last < 0, np.nan, stats.target_log_prob[rows, last])

    row = table.Score(last_token, "Last token", "log-likelihood of the last token")
    monkeypatch.setattr(table, "SCORES", (*table.SCORES, row))
    found = audit(pair, read_texts(world.mixed), **QUICK)
    write_result(found, tmp_path, kind="audit", title="One more", config={})
    write_report([tmp_path], tmp_path / "report.html")
    rows = read_rows(tmp_path / "scores.jsonl")
    values = np.array([each["scores"]["last_token"] for each in rows])
    assert np.isfinite(values).all()
    assert (values <= 0).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    area = summary["combinations"][0]["attacks"]["last_token"]["auc"]["value"]
    inside, outside = values[found.labels == 1], values[found.labels == 0]
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert area == pytest.approx(np.mean(wins))
    page = (tmp_path / "report.html").read_text()
    assert "Last token" in page
    assert "log-likelihood of the last token" in page
    assert scores.describe("last_token").label == "Last token"


def test_records_keep_the_layout_of_files(result):
    written = to_dict(result.combinations[0], tagged=False)
    assert list(written) == [
        *("name", "target", "reference", "corpus", "unseen", "counts"),
        *("loss_gap_nats", "attacks", "controls"),
    ]
    assert list(written["counts"]) == ["texts", "members", "nonmembers", "flagged"]
    assert set(written["controls"]) <= {"blind", "permutation"}
