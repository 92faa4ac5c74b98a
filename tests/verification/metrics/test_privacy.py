import math

import numpy as np
import pytest
from oracle_unlearning_metrics import completeness_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification import metrics


def leak_of(forget, holdout, forget_retrained, holdout_retrained):
    return metrics.priv_leak_of_scores(
        forget_unlearned=np.array(forget),
        holdout_unlearned=np.array(holdout),
        forget_retrained=np.array(forget_retrained),
        holdout_retrained=np.array(holdout_retrained),
    )


def test_priv_leak_signs():
    for retrained in (0.4, 0.5, 0.61):
        assert metrics.priv_leak(retrained, retrained) == 0
        assert metrics.priv_leak(1.0, retrained) == -100
        assert metrics.priv_leak(0.9, retrained) < 0 < metrics.priv_leak(0.1, retrained)
    assert metrics.priv_leak(0.0, 0.5) == 100


def test_priv_leak_is_the_authors_number():
    """Their AUC has the forget texts as class 0: one minus ours, over the retrained."""
    for ours, theirs in ((0.93, 0.4772), (0.2, 0.5393)):
        flipped, base = 1 - ours, 1 - theirs
        expected = 100 * (flipped - base) / base
        assert metrics.priv_leak(ours, theirs) == pytest.approx(expected)


def test_priv_leak_from_scores_counts_pairs():
    found = leak_of([3.0, 1], [2.0, 0], [1.0, 1], [1.0, 2])
    # Pairs won: 3 of 4; half of two ties and none of two.
    assert found == (100 * (0.25 - 0.75) / 0.75, 0.75, 0.25)


def test_leakage_by_group_and_the_worst():
    unlearned = {"loss": {"random": 0.6, "canary": 0.3}, "zlib": {"random": 0.55}}
    retrained = {"loss": {"random": 0.5, "canary": 0.5}, "zlib": {"random": 0.5}}
    table = metrics.leakage_table(unlearned, retrained)
    assert table["loss"]["random"] == pytest.approx(0.2)
    assert table["zlib"]["random"] == pytest.approx(0.1)
    worst = metrics.worst_group(table)
    # Over-unlearned by more than the other groups are under-unlearned.
    assert worst == ("loss", "canary", pytest.approx(-0.4))


def test_epsilon_by_hand():
    found = metrics.epsilon(
        np.array([0.1, 0.5, 0.0, 1.0]), np.array([0.2, 0.5, 0.0, 0.0])
    )
    expected = min(
        math.log(0.9 - 1e-5) - math.log(0.2), math.log(0.8 - 1e-5) - math.log(0.1)
    )
    assert found[0] == pytest.approx(expected)
    assert found[1:].tolist() == [0, math.inf, 0]
    swapped = metrics.epsilon(np.array([0.2]), np.array([0.1]))
    assert swapped[0] == pytest.approx(found[0])


@pytest.mark.parametrize("seed", range(3))
def test_threshold_attack_tries_all(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(0.8, 1, size=30), rng.normal(size=25)
    best = 0.0
    for cut in [*ours, *theirs]:
        for positive, negative in ((ours, theirs), (theirs, ours)):
            fpr, fnr = np.mean(negative >= cut), np.mean(positive < cut)
            best = max(best, float(metrics.epsilon(fpr[None], fnr[None])[0]))
    found = metrics.threshold_attack(ours, theirs)
    assert found.epsilon == pytest.approx(best)
    assert found.attack_score == pytest.approx(1 - 2**-best)
    assert found.forgetting_quality == pytest.approx(2**-best)
    assert found.positive == "unlearned"
    turned = metrics.threshold_attack(theirs, ours)
    assert (turned.epsilon, turned.positive) == (found.epsilon, "retrained")
    few = metrics.threshold_attack(ours, theirs, thresholds=np.linspace(-3, 3, 5))
    assert few.epsilon <= found.epsilon


def test_threshold_attack_at_both_ends():
    apart = metrics.threshold_attack(np.arange(5.0), np.arange(10.0, 15.0))
    assert (apart.epsilon, apart.attack_score) == (math.inf, 1)
    assert (apart.positive, apart.threshold) == ("retrained", 10)
    same = metrics.threshold_attack(np.zeros(5), np.zeros(5))
    assert (same.epsilon, same.forgetting_quality) == (0, 1)
    both = {"entropy": same, "confidence": apart}
    assert metrics.forgetting_quality_score(both) == 0


def test_signal_rises_with_probability_and_stays_finite():
    p = np.concatenate([[0], np.geomspace(1e-9, 1, 50)])
    r = metrics.fitting_signal(p)
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
    found = metrics.unlearning_completeness(
        unlearned, original, table, steps=20, pooled=pooled
    )
    expected = completeness_oracle(
        unlearned, original, table, 20, shadows == 1 if pooled is None else pooled
    )
    np.testing.assert_allclose(found.score, expected, rtol=1e-9)
    r = metrics.fitting_signal
    gap = r(unlearned) - np.mean([r(row) for row in table], axis=0)
    np.testing.assert_allclose(found.gap, gap)


@pytest.mark.parametrize("shadows", [1, 5])
def test_completeness_is_oriented(shadows):
    """As fitted, as the shadows, and far below them: from little to 1."""
    _, original, table = iam_case(shadows)
    # The probability whose signal is the shadows' mean.
    middle = np.mean([metrics.fitting_signal(row) for row in table], axis=0)
    typical = np.exp(1e-2 - np.exp(-middle)) - 1e-5
    scores = [
        metrics.unlearning_completeness(p, original, table)
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
            metrics.unlearning_completeness(
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
    straight = metrics.unlearning_completeness(unlearned, original, table)
    turned = metrics.unlearning_completeness(
        unlearned[order], original[order], table[:, order]
    )
    np.testing.assert_allclose(turned.score, straight.score[order], rtol=1e-12)


def test_completeness_without_the_original_takes_a_perfect_fit():
    unlearned, original, table = iam_case()
    offline = metrics.unlearning_completeness(unlearned, None, table)
    perfect = metrics.unlearning_completeness(unlearned, np.ones_like(original), table)
    np.testing.assert_array_equal(offline.score, perfect.score)


def test_shadows_that_agree_make_a_step():
    same = np.full((3, 2), 0.3)
    found = metrics.unlearning_completeness(np.array([0.0, 1.0]), np.full(2, 0.9), same)
    np.testing.assert_allclose(found.score, [1, 0], atol=1e-12)


def test_trace_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(30, 6))
    shift = np.array([1.5, 0, 0, 0, 0, 0])
    found = metrics.trace_accuracy(
        before, before + shift + 0.3 * rng.normal(size=(30, 6)), permutations=19
    )
    assert found.accuracy > 0.7
    assert found.p_value == 1 / 20
    untouched = metrics.trace_accuracy(before, before.copy(), permutations=5)
    assert untouched == (0.5, 1)


def test_trace_p_value_without_a_trace():
    rng = np.random.default_rng(1)
    p = [
        metrics.trace_accuracy(
            *rng.normal(size=(2, 12, 2)), permutations=9, seed=i
        ).p_value
        for i in range(8)
    ]
    assert np.mean(np.array(p) <= 0.2) <= 0.6  # 0.2 expected
    assert max(p) > 0.5


def test_trace_is_judged_on_prompts_not_trained_on():
    # With more features than rows any classifier is perfect on what it has seen.
    noise = np.random.default_rng(2).normal(size=(2, 20, 60))
    assert metrics.trace_accuracy(*noise, permutations=1).accuracy < 0.75


def test_alignment_equals_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 6))
    center = np.eye(9) - 1 / 9
    k, h = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ center @ b @ center)

    expected = hsic(k, h) / math.sqrt(hsic(k, k) * hsic(h, h))
    assert metrics.linear_cka(x, y) == pytest.approx(expected)
    # Fewer rows than columns go by the other formula.
    wide = metrics.linear_cka(x[:3], y[:3])
    center = np.eye(3) - 1 / 3
    k, h = k[:3, :3], h[:3, :3]
    expected = hsic(k, h) / math.sqrt(hsic(k, k) * hsic(h, h))
    assert wide == pytest.approx(expected)


def test_alignment_ignores_rotation_scale_and_offset():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert metrics.linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert metrics.linear_cka(x, rng.normal(size=(20, 5))) < 0.6
    layers = metrics.layerwise_cka({2: x, 0: x}, {0: x[:, ::-1].copy(), 2: x})
    assert list(layers) == [0, 2]
    np.testing.assert_allclose(list(layers.values()), 1)


def test_bad_input_is_told():
    unlearned, original, table = iam_case()
    with pytest.raises(InputError, match="AUC 1"):
        metrics.priv_leak(0.5, 1.0)
    with pytest.raises(InputError, match="auc_unlearned is nan"):
        metrics.priv_leak(math.nan, 0.5)
    with pytest.raises(
        InputError, match="holdout scores of the retrained model is NaN"
    ):
        leak_of([1.0], [2.0], [1.0], [math.nan])
    with pytest.raises(InputError, match="at least one item"):
        leak_of(np.zeros(0), [2.0], [1.0], [1.0])
    with pytest.raises(InputError, match="higher scores mean member"):
        metrics.privacy_leakage(0.5, 0.0)
    with pytest.raises(InputError, match="canary"):
        metrics.leakage_table({"loss": {"canary": 0.5}}, {"loss": {"random": 0.5}})
    with pytest.raises(InputError, match="table of leakages is empty"):
        metrics.worst_group({})
    with pytest.raises(InputError, match="at least one signal"):
        metrics.forgetting_quality_score({})
    with pytest.raises(InputError, match="unlearned 6, original 6, shadows 5"):
        metrics.unlearning_completeness(unlearned, original, table[:, :5])
    with pytest.raises(InputError, match="no deviation"):
        metrics.unlearning_completeness(unlearned[:1], original[:1], table[:1, :1])
    with pytest.raises(InputError, match=r"expected values in \[0, 1\]"):
        metrics.unlearning_completeness(2 * unlearned, original, table)
    with pytest.raises(InputError, match="steps is 1"):
        metrics.unlearning_completeness(unlearned, original, table, steps=1)
    with pytest.raises(InputError, match="eps1"):
        metrics.fitting_signal(unlearned, eps1=0.0)
    with pytest.raises(InputError, match="at least 5 prompts"):
        metrics.trace_accuracy(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="x 3, y 4"):
        metrics.linear_cka(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(InputError, match="constant"):
        metrics.linear_cka(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(InputError, match=r"layers are \[0\] and \[1\]"):
        metrics.layerwise_cka({0: np.eye(3)}, {1: np.eye(3)})
