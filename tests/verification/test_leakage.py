"""PrivLeak at its corners, and leakage by group against counting."""

import numpy as np
import pytest

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.leakage import group_leakage, privacy


def test_a_zero_that_some_draws_lose_has_no_interval():
    """The retrained model errs on one pair of texts, which half of the draws miss."""
    truth = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.5, 1.5, -1.0])
    mine = np.array([0.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.5, 1.5, -1.0])
    found = privacy((mine[0], truth[0]), (mine[1], truth[1]), seed=0)
    areas = [(f[:, None] > h[None]).mean() for f, h in (mine, truth)]
    leak = 100 * ((1 - areas[0]) - (1 - areas[1])) / (1 - areas[1])
    assert found == Estimate(found.value)
    assert found.value == pytest.approx(leak)


def wins(forget, holdout):
    """AUC by counting pairs, ties one half."""
    above = forget[:, None] > holdout[None]
    return (above + 0.5 * (forget[:, None] == holdout[None])).mean()


def test_groups_against_counting():
    rng = np.random.default_rng(1)
    topics = ["city"] * 10 + ["pet"] * 9 + ["year"] * 7 + [None] * 8  # year: too few
    topics = [topics[i] for i in rng.permutation(len(topics))]
    known = np.array([topic == "pet" for topic in topics])

    def measured(shift):
        scores = {
            name: np.round(rng.normal(size=len(topics)), 1) + shift * known
            for name in ("loss", "zlib")
        }
        holdout = {name: np.round(rng.normal(size=30), 1) for name in scores}
        return Measured({}, scores, holdout, topics=tuple(topics))

    one, truth = measured(2.0), measured(0.0)
    every, worst = group_leakage(one, truth, 0)
    expected = {}
    for name in ("loss", "zlib"):
        for topic in ("city", "pet"):
            inside = np.array([each == topic for each in topics])
            mine, theirs = (
                wins(x.forget_scores[name][inside], x.holdout_scores[name])
                for x in (one, truth)
            )
            expected[name, topic] = (mine - theirs) / theirs
    assert {(x.attack, x.group): x.value for x in every} == pytest.approx(expected)
    assert {x.group: x.n for x in every} == {"city": 10, "pet": 9}
    largest = max(expected, key=lambda cell: abs(expected[cell]))
    assert largest[1] == "pet"
    assert (worst.attack, worst.group) == largest
    assert worst.low < worst.value < worst.high
    assert group_leakage(one._replace(topics=(None,) * len(topics)), truth, 0) == (
        (),
        None,
    )
    # Less familiar than after retraining counts as much as more.
    turned, lowest = group_leakage(truth, one, 0)
    assert lowest.value == min(x.value for x in turned) < 0


def test_a_group_that_the_retrained_model_ranks_last_has_no_leakage():
    texts, topics = np.arange(8.0), ("city",) * 8
    one = Measured({}, {"loss": texts}, {"loss": texts}, topics=topics)
    last = Measured({}, {"loss": texts - 100}, {"loss": texts}, topics=topics)
    assert group_leakage(one, last, 0) == ((), None)
    assert group_leakage(last, last, 0)[1].value == 0
