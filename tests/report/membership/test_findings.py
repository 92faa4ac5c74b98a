import json

import numpy as np
import pytest
from oracle_report import synthesise_run

from lt_mia_jax.report.membership.findings import discoveries, findings
from lt_mia_jax.report.membership.run import read_run


def found_in(run):
    return {each.title: each for each in findings(read_run(run))}


def rewrite(run, change):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def set_auc(summary, kind, name, value, width=0.02):
    interval = {"value": value, "low": value - width, "high": value + width}
    summary["combinations"][0][kind][name]["auc"] = interval


def test_a_sound_evaluation_passes(tmp_path):
    run = synthesise_run(tmp_path / "run", n=400)
    rewrite(run, lambda s: set_auc(s, "controls", "permutation", 0.5))
    rewrite(run, lambda s: set_auc(s, "controls", "blind", 0.52))
    found = found_in(run)
    assert found["The split is not shifted"].level == "pass"
    assert found["Shuffled labels give chance"].level == "pass"
    assert found["Held out"].level == "pass"
    assert [title for title, each in found.items() if each.level == "caution"] == [
        "Some rates are not quoted"
    ]
    assert "10,000 non-members for 0.1" in found["Some rates are not quoted"].text


def test_blind_baseline_above_the_limit(tmp_path):
    run = synthesise_run(tmp_path / "run", n=100)
    rewrite(run, lambda s: set_auc(s, "controls", "blind", 0.61))
    assert "0.610" in found_in(run)["The split is shifted"].text
    rewrite(run, lambda s: s["combinations"][0]["controls"].pop("blind"))
    assert "No text-only baseline" in found_in(run)


def test_shuffled_labels_off_chance(tmp_path):
    run = synthesise_run(tmp_path / "run", n=100)
    rewrite(run, lambda s: set_auc(s, "controls", "permutation", 0.6))
    assert found_in(run)["Shuffled labels are not at chance"].level == "caution"


def test_weak_beaten_and_small(tmp_path):
    run = synthesise_run(tmp_path / "run", n=100)
    rewrite(run, lambda s: set_auc(s, "attacks", "lt_mia", 0.51))
    rewrite(run, lambda s: set_auc(s, "attacks", "reference", 0.98))
    found = found_in(run)
    assert "LT-MIA includes 0.5" in found["Not distinguishable from chance"].text
    assert "Reference" in found["A simpler attack scores higher"].text
    assert "100 texts" in found["Few texts"].text


def test_several_combinations_are_named(tmp_path):
    names = ("a on x", "b on x", "c on y")
    run = synthesise_run(tmp_path / "run", n=60, combinations=names)
    rewrite(run, lambda s: s["combinations"][1].update(unseen=False))
    assert found_in(run)["Not a held-out combination"].text.startswith(
        "In 1 of 3 combinations (b on x), "
    )


def test_unlabeled_runs_say_so(tmp_path):
    run = synthesise_run(tmp_path / "plain", n=50, labeled=False)
    found = found_in(run)
    assert found["No labels"].level == "note"
    assert found["No calibration"].level == "caution"
    run = synthesise_run(tmp_path / "cal", n=50, labeled=False, calibrated=True)
    found = found_in(run)
    assert "No calibration" not in found
    assert found["P-values of non-members look uniform"].level == "pass"
    rewrite(run, lambda s: s["calibration"].update(ks_p=0.001))
    found = found_in(run)
    assert found["P-values of non-members are not uniform"].level == "caution"


@pytest.mark.parametrize("decision", ["member", "no evidence"])
def test_no_evidence_is_explained(tmp_path, decision):
    run = synthesise_run(tmp_path / "run", n=50, labeled=False, calibrated=True)
    rewrite(run, lambda s: s["dataset"].update(decision=decision))
    assert ("No evidence is not absence" in found_in(run)) == (decision != "member")


@pytest.mark.parametrize("seed", range(5))
def test_discoveries_equal_the_definition(seed):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(80), rng.random(20) * 0.01])
    # The largest k for which k p-values lie at or below 0.05 k / n.
    passing = [k for k in range(101) if (p <= 0.05 * k / 100).sum() >= k]
    assert discoveries(p, 0.05) == max(passing) > 0
