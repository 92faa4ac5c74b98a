import json

import numpy as np
import pytest
from oracle_report import synthesise_run

from lt_mia_jax.errors import InputError
from lt_mia_jax.report.membership.run import UNKNOWN, read_run


def change_summary(run, change):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def change_row(run, number, change):
    path = run / "scores.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[number - 1])
    change(row)
    lines[number - 1] = json.dumps(row)
    path.write_text("\n".join(lines))


@pytest.fixture
def run(tmp_path):
    return synthesise_run(tmp_path / "run", n=20)


def test_columns_equal_the_rows(run):
    texts = read_run(run).texts
    rows = [
        json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()
    ]
    assert list(texts.ids) == [row["id"] for row in rows]
    assert texts.labels.tolist() == [row["label"] for row in rows]
    np.testing.assert_array_equal(
        texts.scores["reference"], [row["scores"]["reference"] for row in rows]
    )
    assert np.isnan(texts.p_value).all()


def test_null_and_absent_values(run):
    change_row(run, 1, lambda row: row["scores"].update(lt_mia=None))
    change_row(run, 2, lambda row: row["scores"].pop("zlib"))
    change_row(run, 3, lambda row: row.pop("label"))
    change_row(run, 4, lambda row: row.update(probability=None, p_value=0.25))
    texts = read_run(run).texts
    assert np.isnan(texts.scores["lt_mia"]).tolist() == [True] + [False] * 39
    assert np.isnan(texts.scores["zlib"][1])
    assert texts.labels[2] == UNKNOWN
    assert texts.p_value[3] == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("verdict"), "verdict is missing"),
        (lambda s: s.update(combinations=[]), "combinations is empty"),
        (
            lambda s: s["combinations"][0]["attacks"]["loss"].pop("auc"),
            r"combinations\[0\].attacks.loss.auc is missing",
        ),
        (
            lambda s: s["combinations"][0]["counts"].update(texts="many"),
            "counts.texts is 'many' instead of an integer",
        ),
        (lambda s: s.pop("dataset"), "dataset is missing"),
        (lambda s: s.pop("calibration"), "calibration is missing"),
        *(
            (
                lambda s, key=key: s["combinations"][0].pop(key),
                rf"combinations\[0\].{key} is missing",
            )
            for key in ("unseen", "loss_gap_nats", "attacks", "controls")
        ),
        *(
            (
                lambda s, key=key: s["combinations"][0]["counts"].pop(key),
                rf"combinations\[0\].counts.{key} is missing",
            )
            for key in ("members", "nonmembers", "flagged")
        ),
        (
            lambda s: s["combinations"][0]["attacks"]["loss"]["tpr"]["0.05"].pop(
                "conservative"
            ),
            r"attacks.loss.tpr.0.05.conservative is missing",
        ),
        (
            lambda s: s["combinations"][0]["loss_gap_nats"].pop("value"),
            r"loss_gap_nats.value is missing",
        ),
        (lambda s: s.update(calibration={}), "calibration.primary is missing"),
        (lambda s: s.update(primary="unheard_of"), "no row has the score 'unheard_of'"),
    ],
)
def test_bad_summary_is_named(run, change, message):
    change_summary(run, change)
    with pytest.raises(InputError, match=message) as caught:
        read_run(run)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("scores"), "scores is missing"),
        (lambda row: row.update(n_tokens=-1), "n_tokens is -1 instead"),
        (lambda row: row.update(label=2), "label is 2 instead of one of 0, 1"),
        (lambda row: row["scores"].update(loss=float("nan")), "loss is nan instead"),
        (lambda row: row.update(combination="other"), "combination is 'other'"),
    ],
)
def test_bad_row_is_named_with_its_line(run, change, message):
    change_row(run, 7, change)
    with pytest.raises(InputError, match=message) as caught:
        read_run(run)
    assert "scores.jsonl:7:" in str(caught.value)


def test_missing_files(run, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        read_run(tmp_path / "elsewhere")
    (run / "scores.jsonl").write_text("")
    with pytest.raises(InputError, match="no rows"):
        read_run(run)
    (run / "scores.jsonl").unlink()
    with pytest.raises(InputError, match=r"scores\.jsonl: no such file"):
        read_run(run)
    (run / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: not valid JSON"):
        read_run(run)


def test_all_problems_are_listed_at_once(run):
    keys = ("title", "notes", "command")
    change_summary(run, lambda s: [s.pop(key) for key in keys])
    with pytest.raises(InputError, match="title") as caught:
        read_run(run)
    assert all(key in str(caught.value) for key in keys)
