import math

import numpy as np
import pytest
from oracle_unlearning_metrics import completeness_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import privacy


def test_leakage_keeps_its_sign():
    assert privacy.privacy_leakage(0.6, 0.5) == pytest.approx(0.2)
    assert privacy.privacy_leakage(0.3, 0.5) == pytest.approx(-0.4)


def test_epsilon_by_hand():
    found = privacy.epsilon(
        np.array([0.1, 0.5, 0.0, 1.0]), np.array([0.2, 0.5, 0.0, 0.0])
    )
    expected = min(
        math.log(0.9 - 1e-5) - math.log(0.2), math.log(0.8 - 1e-5) - math.log(0.1)
    )
    assert found[0] == pytest.approx(expected)
    assert found[1:].tolist() == [0, math.inf, 0]
    swapped = privacy.epsilon(np.array([0.2]), np.array([0.1]))
    assert swapped[0] == pytest.approx(found[0])


@pytest.mark.parametrize("seed", range(3))
def test_threshold_attack_tries_all(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(0.8, 1, size=30), rng.normal(size=25)
    best = 0.0
    for cut in [*ours, *theirs]:
        for positive, negative in ((ours, theirs), (theirs, ours)):
            fpr, fnr = np.mean(negative >= cut), np.mean(positive < cut)
            best = max(best, float(privacy.epsilon(fpr[None], fnr[None])[0]))
    found = privacy.threshold_attack(ours, theirs)
    assert found.epsilon == pytest.approx(best)
    assert found.attack_score == pytest.approx(1 - 2**-best)
    assert found.positive == "unlearned"
    turned = privacy.threshold_attack(theirs, ours)
    assert (turned.epsilon, turned.positive) == (found.epsilon, "retrained")
    few = privacy.threshold_attack(ours, theirs, thresholds=np.linspace(-3, 3, 5))
    assert few.epsilon <= found.epsilon


def test_threshold_attack_at_both_ends():
    apart = privacy.threshold_attack(np.arange(5.0), np.arange(10.0, 15.0))
    assert (apart.epsilon, apart.attack_score) == (math.inf, 1)
    assert (apart.positive, apart.threshold) == ("retrained", 10)
    same = privacy.threshold_attack(np.zeros(5), np.zeros(5))
    assert (same.epsilon, same.attack_score) == (0, 0)


def test_signal_rises_with_probability_and_stays_finite():
    p = np.concatenate([[0], np.geomspace(1e-9, 1, 50)])
    r = privacy.fitting_signal(p)
    assert np.isfinite(r).all()
    assert (np.diff(r) > 0).all()
    assert r[-1] == pytest.approx(-math.log(1e-2 - math.log(1 + 1e-5)))


def iam_case(shadows=4, items=6, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(0.05, 0.9, items),
        rng.uniform(0.8, 0.99, items),
        rng.uniform(0.1, 0.5, (shadows, items)),
    )


@pytest.mark.parametrize(
    ("shadows", "pooled"), [(4, None), (4, True), (1, None), (2, False)]
)
def test_completeness_equals_its_definition(shadows, pooled):
    unlearned, original, table = iam_case(shadows)
    found = privacy.unlearning_completeness(
        unlearned, original, table, steps=20, pooled=pooled
    )
    expected = completeness_oracle(
        unlearned, original, table, 20, shadows == 1 if pooled is None else pooled
    )
    np.testing.assert_allclose(found.score, expected, rtol=1e-9)
    r = privacy.fitting_signal
    gap = r(unlearned) - np.mean([r(row) for row in table], axis=0)
    np.testing.assert_allclose(found.gap, gap)


@pytest.mark.parametrize("shadows", [1, 5])
def test_completeness_is_oriented(shadows):
    """As fitted, as the shadows, and far below them: from little to 1."""
    _, original, table = iam_case(shadows)
    # The probability whose signal is the shadows' mean.
    middle = np.mean([privacy.fitting_signal(row) for row in table], axis=0)
    typical = np.exp(1e-2 - np.exp(-middle)) - 1e-5
    scores = [
        privacy.unlearning_completeness(p, original, table)
        for p in (original, typical, np.zeros_like(original))
    ]
    fitted, generalized, nothing = (s.score for s in scores)
    assert (fitted < generalized).all()
    assert (generalized < nothing).all()
    assert (nothing > 0.99).all()
    assert fitted.max() < 0.5 < generalized.min()
    np.testing.assert_allclose(scores[1].gap, 0, atol=1e-12)
    assert (scores[0].gap > 0).all()
    assert (scores[2].gap < 0).all()


@pytest.mark.parametrize("shadows", [1, 5])
def test_completeness_falls_as_the_item_comes_back(shadows):
    _, original, table = iam_case(shadows)
    scores = np.array(
        [
            privacy.unlearning_completeness(
                np.full_like(original, p), original, table
            ).score
            for p in np.linspace(0.15, 0.7, 12)
        ]
    )
    falls = np.diff(scores, axis=0)
    assert (falls <= 0).all()
    # Strictly, up to where float64 tells the score from 1.
    assert (falls[scores[:-1] < 1 - 1e-12] < 0).all()
    assert (scores < 1 - 1e-12).mean() > 0.8


@pytest.mark.parametrize("shadows", [1, 5])
def test_completeness_ignores_the_order_of_items(shadows):
    unlearned, original, table = iam_case(shadows, items=9)
    order = np.random.default_rng(1).permutation(9)
    straight = privacy.unlearning_completeness(unlearned, original, table)
    turned = privacy.unlearning_completeness(
        unlearned[order], original[order], table[:, order]
    )
    np.testing.assert_allclose(turned.score, straight.score[order], rtol=1e-12)


def test_completeness_without_the_original_takes_a_perfect_fit():
    unlearned, original, table = iam_case()
    offline = privacy.unlearning_completeness(unlearned, None, table)
    perfect = privacy.unlearning_completeness(unlearned, np.ones_like(original), table)
    np.testing.assert_array_equal(offline.score, perfect.score)


def test_shadows_that_agree_make_a_step():
    same = np.full((3, 2), 0.3)
    found = privacy.unlearning_completeness(np.array([0.0, 1.0]), np.full(2, 0.9), same)
    np.testing.assert_allclose(found.score, [1, 0], atol=1e-12)


def test_bad_input_is_told():
    unlearned, original, table = iam_case()
    with pytest.raises(InputError, match="higher scores mean member"):
        privacy.privacy_leakage(0.5, 0.0)
    with pytest.raises(InputError, match="unlearned 6, original 6, shadows 5"):
        privacy.unlearning_completeness(unlearned, original, table[:, :5])
    with pytest.raises(InputError, match="no deviation"):
        privacy.unlearning_completeness(unlearned[:1], original[:1], table[:1, :1])
    with pytest.raises(InputError, match=r"expected values in \[0, 1\]"):
        privacy.unlearning_completeness(2 * unlearned, original, table)
    with pytest.raises(InputError, match="steps is 1"):
        privacy.unlearning_completeness(unlearned, original, table, steps=1)
    with pytest.raises(InputError, match="eps1"):
        privacy.fitting_signal(unlearned, eps1=0.0)
