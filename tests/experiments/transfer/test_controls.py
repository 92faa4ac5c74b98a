"""The controls' intervals: where nothing leaks they hold 0.5 as often as they say."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.transfer import controls as transfer_controls
from experiments.transfer.statistics import Judged, Resamples, permuted_labels_of
from experiments.transfer.tables import TEXT_ONLY

MEMBERS, OTHERS = 30, 70
LABELS = np.repeat([1, 0], [MEMBERS, OTHERS])


def combination(number, rng, *, spread=1.0, shift=0.0, permuted=20):
    """A text-only control whose AUC scatters `spread` times as far as chance."""

    def scores(shift, count):
        # Adding a common amount to all members moves the AUC as a whole.
        moved = shift + np.sqrt(spread**2 - 1) * rng.normal(size=(count, 1)) / 4.6
        return rng.normal(size=(count, len(LABELS))) + moved * LABELS

    unrelated = scores(0, permuted)
    above = unrelated[:, :MEMBERS, None] > unrelated[:, None, MEMBERS:]
    return Judged(
        name=str(number),
        base="a",
        corpus=f"c{number}",
        draw=0,
        ids=np.array([f"{number} {i}" for i in range(len(LABELS))]),
        labels=LABELS,
        permuted=above.mean(axis=(1, 2)),
        scores=dict(zip((TEXT_ONLY, "s"), scores(shift, 2), strict=True)),
    )


def judged(labels):
    return Judged(
        name="", base="", corpus="", draw=0, ids=labels, labels=labels, scores={}
    )


def test_chance_is_the_spread_over_all_orders():
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    aucs = [
        roc_auc_score(np.isin(np.arange(7), members), np.arange(7))
        for members in itertools.combinations(range(7), 3)
    ]
    assert transfer_controls.chance(judged(labels)) == pytest.approx(np.std(aucs))


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_text_only_without_a_leak(spread):
    rng = np.random.default_rng(0)
    each, together = 0, 0
    for _ in range(100):
        part = [combination(k, rng, spread=spread) for k in range(10)]
        row, _ = transfer_controls.text_only(part)
        each += int(row[1].split()[0])
        together += row[2] == "10 of 10"
    # 95 % of 1,000, less what 200 permutations know of their tails; 95 % of 100.
    assert 0.92 < each / 1000 < 0.97
    assert together >= 88


def test_text_only_with_a_leak():
    rng = np.random.default_rng(1)
    part = [combination(k, rng, spread=1.5, shift=2.0) for k in range(10)]
    row, permuted = transfer_controls.text_only(part)
    assert int(row[1].split()[0]) <= 2
    assert int(row[2].split()[0]) <= 5
    auc = np.mean([roc_auc_score(LABELS, j.scores[TEXT_ONLY]) for j in part])
    assert row[4].startswith(f"{auc:.3f} [0.")
    assert float(row[4].split("[")[1].split(",")[0]) > 0.8
    assert "spread 1." in permuted[0]


def test_too_few_texts_are_said():
    rng = np.random.default_rng(2)
    part = [combination(k, rng, permuted=0) for k in range(2)]
    (row,) = transfer_controls.text_only(part)
    assert row[1:] == ["too few texts"] * 4


@pytest.mark.parametrize(("shift", "held"), [(0.0, True), (1.5, False)])
def test_resampled_intervals(shift, held):
    rng = np.random.default_rng(3)
    part = [combination(k, rng, shift=shift) for k in range(8)]
    resamples = Resamples(part, count=400, seed=0)
    each, together, low, mean = transfer_controls.resampled(part, "s", resamples)
    assert (int(together.split()[0]) == 8) == held
    assert int(each.split()[0]) <= int(together.split()[0])
    aucs = [roc_auc_score(LABELS, j.scores["s"]) for j in part]
    assert low == f"{min(aucs):.3f} to {max(aucs):.3f}"
    assert mean.startswith(f"{np.mean(aucs):.3f} [")


def test_permuted_labels_average_out():
    """Of many combinations with members first, however well a score tells them."""
    shuffled = [permuted_labels_of(f"c{k}", LABELS, 0) for k in range(400)]
    assert {one.sum() for one in shuffled} == {MEMBERS}
    assert not np.array_equal(shuffled[0], permuted_labels_of("c0", LABELS, 1))
    ranks = np.arange(len(LABELS), 0, -1)  # tells all members
    aucs = np.array([roc_auc_score(one, ranks) for one in shuffled])
    error = transfer_controls.chance(judged(LABELS)) / np.sqrt(len(aucs))
    assert abs(aucs.mean() - 0.5) < 3 * error
    assert aucs.std() == pytest.approx(error * np.sqrt(len(aucs)), rel=0.15)
