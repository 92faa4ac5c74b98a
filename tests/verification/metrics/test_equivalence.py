"""The test of equivalence: against t-tests, by simulation, and on few items."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lt_mia_jax.verification.items import Items
from lt_mia_jax.verification.metrics.equivalence import (
    FEWEST,
    MARGIN,
    equivalence,
    quantities,
    share_left,
)
from lt_mia_jax.verification.records import DIFFERENT, EQUIVALENT, TOO_FEW

RNG = np.random.default_rng(5)


def models(count, left, *, noise=0.06, rng=RNG):
    """Probabilities before unlearning, after it, and under a retrained model."""
    retrained = rng.beta(4, 4, count)
    original = rng.beta(60, 1, count)
    unlearned = retrained + left * (original - retrained)
    moved = unlearned + noise * rng.normal(size=count)
    return [{"probability": x} for x in (original, moved, retrained)]


def one_sided(original, unlearned, retrained, share):
    """p-values that the share left is below, and above, `share`."""
    beyond = (unlearned - retrained) - share * (original - retrained)
    return [ttest_1samp(beyond, 0, alternative=x).pvalue for x in ("greater", "less")]


@pytest.mark.parametrize("left", [0.0, 0.2, 0.25, 1.0, -0.4])
def test_interval_ends_are_those_of_t_tests(left):
    sides = [x["probability"] for x in models(12, left)]
    found = share_left(*sides)
    assert one_sided(*sides, found.low)[0] == pytest.approx(0.05, rel=1e-6)
    assert one_sided(*sides, found.high)[1] == pytest.approx(0.05, rel=1e-6)
    means = [side.mean() for side in sides]
    assert found.value == pytest.approx(
        (means[1] - means[2]) / (means[0] - means[2]), rel=1e-9
    )


@pytest.mark.parametrize("count", [5, 8, 20])
def test_decision_is_that_of_two_one_sided_tests(count):
    """Schuirmann's procedure: both hypotheses of a difference are rejected."""
    said = []
    for left in np.linspace(-0.5, 1, 40):
        sides = models(count, left)
        values = [x["probability"] for x in sides]
        low = one_sided(*values, -MARGIN)
        high = one_sided(*values, MARGIN)
        decision = equivalence(*sides).decision
        assert (decision == EQUIVALENT) == (low[0] < 0.05 and high[1] < 0.05)
        assert (decision == DIFFERENT) == (low[1] < 0.05 or high[0] < 0.05)
        said.append(decision)
    assert {EQUIVALENT, DIFFERENT} <= set(said)


def declared(count, left, draws=200):
    rng = np.random.default_rng(count)
    found = [
        equivalence(*models(count, left, rng=rng)).decision == EQUIVALENT
        for _ in range(draws)
    ]
    return np.mean(found)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 30, 100])
def test_nothing_forgotten_is_never_said_to_be_forgotten(count):
    assert declared(count, 1.0) == 0
    assert declared(count, 0.5) <= 0.05
    # At the margin itself; 200 draws at 5 % stay below 9 % with p = .99.
    assert declared(count, MARGIN) <= 0.09
    assert declared(count, -MARGIN) <= 0.09


def test_perfect_forgetting_is_seen_on_fifty_items():
    assert declared(50, 0.0) >= 0.8
    # The retrained model itself.
    original, _, retrained = models(50, 0.0)
    assert equivalence(original, retrained, retrained).decision == EQUIVALENT


@pytest.mark.parametrize("count", range(FEWEST))
def test_few_items_say_nothing(count):
    original, _, retrained = models(count, 1.0)
    for judged in (original, retrained):
        assert equivalence(original, judged, retrained).decision == TOO_FEW


def test_every_quantity_must_be_equivalent():
    one, other = models(60, 0.0, noise=0.02), models(60, 0.8, noise=0.02)
    both = [
        {"probability": a["probability"], "exact_memorization": b["probability"]}
        for a, b in zip(one, other, strict=True)
    ]
    found = equivalence(*both)
    assert found.decision == DIFFERENT
    assert abs(found.shares["probability"].value) < MARGIN
    assert found.shares["exact_memorization"].low > MARGIN


def test_quantities_share_the_error_of_a_difference():
    said = set()
    for left in np.linspace(0.25, 0.5, 60):
        sides, rest = models(8, left), models(8, 0.0, noise=0.02)
        one = [x["probability"] for x in sides]
        both = [
            x | {"exact_memorization": y["probability"]}
            for x, y in zip(sides, rest, strict=True)
        ]
        p = one_sided(*one, MARGIN)[0]
        decisions = [equivalence(*each).decision for each in (sides, both)]
        assert [each == DIFFERENT for each in decisions] == [p < 0.05, p < 0.025]
        said |= {tuple(decisions)}
    assert (DIFFERENT, TOO_FEW) in said


def test_quantities_without_a_scale():
    original, unlearned, retrained = models(30, 0.0, noise=0.02)
    flat = {"truth_ratio": np.ones(30)}
    found = equivalence(original | flat, unlearned | flat, retrained | flat)
    assert list(found.shares) == ["probability"]
    assert found.decision == EQUIVALENT
    # No scale of the first quantity: nothing was learned that could be forgotten.
    assert equivalence(retrained, unlearned, original).decision == TOO_FEW


def test_over_forgetting_shows_in_the_logarithm():
    rng = np.random.default_rng(0)
    nothing = np.full(40, np.nan)
    items = Items(*([nothing] * 8), generated=("",) * 40)
    low = rng.uniform(0.05, 0.15, 40)
    known, gone = rng.uniform(0.8, 0.95, 40), np.full(40, 1e-6)
    sides = [quantities(items._replace(probability=x)) for x in (known, gone, low)]
    found = equivalence(*sides)
    assert abs(found.shares["probability"].value) < MARGIN
    assert found.shares["log_probability"].high < -MARGIN
    assert found.decision == DIFFERENT
    assert set(found.shares) == {"probability", "log_probability"}


def test_items_without_a_value_are_left_out_of_all_sides():
    sides = models(20, 0.0)
    sides[1]["probability"] = sides[1]["probability"].copy()
    sides[1]["probability"][3] = np.nan
    found = equivalence(*sides)
    without = [np.delete(x["probability"], 3) for x in sides]
    assert found.n == 19
    assert found.shares["probability"] == share_left(*without)
