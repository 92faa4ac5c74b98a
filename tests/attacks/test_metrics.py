import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lt_mia_jax.attacks import metrics
from lt_mia_jax.attacks.estimate import AttackSummary, Estimate
from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.errors import InputError


def _sample(n=90, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.45).astype(np.int64)
    scores = rng.normal(size=n) + labels
    return labels, np.round(scores, 1) if ties else scores


def _brute_auc(labels, scores):
    wins = [
        (m > n) + 0.5 * (m == n)
        for m in scores[labels == 1]
        for n in scores[labels == 0]
    ]
    return sum(wins) / len(wins)


def _brute_tpr(labels, scores, f):
    """Conservative and interpolated, from every threshold one by one."""
    members, nonmembers = scores[labels == 1], scores[labels == 0]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        points.append((np.mean(nonmembers >= threshold), np.mean(members >= threshold)))
    before = max(p for p in points if p[0] <= f)
    after = [p for p in points if p[0] > f]
    if not after:
        return before[1], before[1]
    after = min(after)
    share = (f - before[0]) / (after[0] - before[0])
    return before[1], before[1] + share * (after[1] - before[1])


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs(seed):
    labels, scores = _sample(seed=seed)
    np.testing.assert_allclose(
        metrics.auc(labels, scores), _brute_auc(labels, scores), rtol=1e-12
    )


@pytest.mark.parametrize("f", [0.0, 0.001, 0.02, 0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_tpr_at_fpr_by_every_threshold(f, seed):
    labels, scores = _sample(seed=seed)
    found = metrics.tpr_at_fpr(labels, scores, f)
    expected = _brute_tpr(labels, scores, f)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-12)
    assert found.conservative <= found.interpolated
    assert found.refused == (f * (labels == 0).sum() < 10)


def test_roc_runs_from_corner_to_corner():
    curve = metrics.roc(*_sample())
    assert (curve.fpr[0], curve.tpr[0]) == (0, 0)
    assert (curve.fpr[-1], curve.tpr[-1]) == (1, 1)


def test_infinite_scores_are_extremes():
    labels, scores = _sample(ties=False)
    extreme = np.where(scores == scores.max(), np.inf, scores)
    extreme = np.where(scores == scores.min(), -np.inf, extreme)
    assert metrics.auc(labels, extreme) == metrics.auc(labels, scores)


def test_no_score_is_missing_not_nonmember():
    labels, scores = _sample(n=300, ties=False)
    holes = scores.copy()
    holes[::7] = np.nan
    keep = ~np.isnan(holes)
    found = metrics.summarize(labels, holes, n_boot=50)
    alone = metrics.summarize(labels[keep], scores[keep], n_boot=50)
    assert found.n_missing == 43
    assert dataclasses.replace(found, n_missing=0) == alone
    assert found.n_members + found.n_nonmembers == 257


def test_summary_point_values_and_refusals():
    labels, scores = _sample(n=700)
    found = metrics.summarize(labels, scores, n_boot=20)
    np.testing.assert_allclose(found.auc.value, roc_auc_score(labels, scores))
    nonmembers = int((labels == 0).sum())
    for name, row in found.tpr.items():
        assert row.refused == (float(name) * nonmembers < 10)
        for kind in ("conservative", "interpolated"):
            found_kind = getattr(row, kind)
            if row.refused:
                assert found_kind == Estimate(None, None, None)
            else:
                point = metrics.tpr_at_fpr(labels, scores, float(name))
                assert found_kind.value == getattr(point, kind)
                assert found_kind.low <= found_kind.value <= found_kind.high
    assert list(found.tpr) == ["0.05", "0.01", "0.001"]


def test_summary_survives_json():
    labels, scores = _sample(n=700)
    found = metrics.summarize(labels, np.where(scores > 2, np.nan, scores), n_boot=20)
    written = json.loads(json.dumps(to_dict(found, tagged=False)))
    assert list(written) == ["auc", "tpr", "n_members", "n_nonmembers", "n_missing"]
    assert list(written["auc"]) == ["value", "low", "high"]
    row = ["conservative", "interpolated", "refused"]
    assert [list(each) for each in written["tpr"].values()] == [row] * 3
    assert from_dict(AttackSummary, written) == found


@pytest.mark.parametrize("count", [(0, 5), (5, 0), (0, 0)])
def test_one_class_has_no_figure(count):
    labels = np.repeat([1, 0], count)
    found = metrics.summarize(labels, np.arange(len(labels), dtype=float))
    assert found.auc == Estimate(None, None, None)
    assert (found.n_members, found.n_nonmembers) == count
    assert math.isnan(metrics.auc(labels, np.arange(len(labels), dtype=float)))


def test_every_resample_matches_scikit_learn():
    labels, scores = _sample(n=260)
    rates = [0.05, 0.2]
    boot = metrics._Resampled(labels, scores, rates, seed=3, n_boot=25)
    rng = np.random.default_rng(3)
    members, nonmembers = scores[labels == 1], scores[labels == 0]
    # The same draws, in the same order: members of all resamples, then non-members.
    drawn = [
        group[rng.integers(len(group), size=(25, len(group)))]
        for group in (members, nonmembers)
    ]
    for i in range(25):
        values = np.concatenate([drawn[0][i], drawn[1][i]])
        truth = np.repeat([1, 0], [len(members), len(nonmembers)])
        np.testing.assert_allclose(boot.auc[i], roc_auc_score(truth, values))
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        for j, f in enumerate(rates):
            np.testing.assert_allclose(
                boot.conservative[j, i], tpr[fpr <= f].max(), rtol=1e-12
            )
            last = np.flatnonzero(fpr <= f)[-1]
            line = np.interp(f, fpr[last : last + 2], tpr[last : last + 2])
            np.testing.assert_allclose(boot.interpolated[j, i], line, rtol=1e-12)


def test_blocks_do_not_change_the_kind_of_result(monkeypatch):
    labels, scores = _sample(n=200)
    whole = metrics._Resampled(labels, scores, [0.1], seed=0, n_boot=400)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 1000)
    parts = metrics._Resampled(labels, scores, [0.1], seed=0, n_boot=400)
    assert parts.auc.shape == whole.auc.shape == (400,)
    # Two independent sets of resamples: means agree within five standard errors.
    error = whole.auc.std() * np.sqrt(2 / 400)
    assert abs(parts.auc.mean() - whole.auc.mean()) < 5 * error


def test_interval_covers_the_true_auc():
    # Members N(1, 1), non-members N(0, 1): AUC = Phi(1 / sqrt 2) = 0.7602.
    true, covered = 0.5 * (1 + math.erf(0.5)), 0
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], 80)
    for _ in range(200):
        scores = rng.normal(size=160) + labels
        auc = metrics.summarize(labels, scores, n_boot=200).auc
        covered += auc.low <= true <= auc.high
    # 95 % nominal; 200 trials have a standard error of 1.5 %.
    assert 178 <= covered <= 199


def test_loss_gap_sign_value_and_interval():
    labels = np.array([1, 1, 0, 0, 1, 0])
    loss = np.array([1.0, 2.0, 3.0, 5.0, np.nan, 4.0])
    gap = metrics.loss_gap(labels, loss)
    assert gap.value == 4.0 - 1.5
    assert gap.low <= 2.5 <= gap.high
    assert metrics.loss_gap(np.ones(3, int), np.ones(3)) is None


def test_loss_gap_interval_has_the_width_of_theory():
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0], 500)
    loss = rng.normal(size=1000)
    gap = metrics.loss_gap(labels, loss)
    expected = 2 * 1.96 * np.sqrt(2 / 500)
    np.testing.assert_allclose(gap.high - gap.low, expected, rtol=0.15)


def test_bad_labels_are_refused():
    with pytest.raises(InputError, match=r"found \[2\]"):
        metrics.auc(np.array([0, 1, 2]), np.zeros(3))
    with pytest.raises(InputError, match="at least one of each"):
        metrics.roc(np.ones(3, int), np.zeros(3))
