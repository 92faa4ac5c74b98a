import json

import numpy as np
import pytest
from scipy.stats import binom, kstest, norm

from lt_mia_jax.attacks import calibration
from lt_mia_jax.attacks.estimate import DatasetVerdict
from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.errors import InputError

P_VALUES = calibration.conformal_p_values


def test_p_values_count_calibration_scores_at_least_as_high():
    rng = np.random.default_rng(0)
    known = np.round(rng.normal(size=40), 1)  # with ties
    scores = np.round(rng.normal(size=15), 1)
    expected = [
        (1 + sum(1 for other in known if other >= s)) / (len(known) + 1) for s in scores
    ]
    np.testing.assert_allclose(P_VALUES(scores, known), expected, rtol=1e-14)


def test_no_score_has_no_p_value():
    known = np.array([1.0, np.nan, 3.0])
    found = P_VALUES(np.array([np.nan, 2.0, np.inf, -np.inf]), known)
    np.testing.assert_array_equal(found, [np.nan, 2 / 3, 1 / 3, 1.0])
    with pytest.raises(InputError, match="at least one"):
        P_VALUES(np.zeros(2), np.full(3, np.nan))


def test_nonmembers_get_uniform_p_values():
    # At a level of 1 %, 20 seeds expect 0.2 rejections and exceed 2 with probability
    # 0.1 %.
    rejected = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = rng.standard_t(3, size=600)
        found = P_VALUES(scores[:300], scores[300:])
        rejected += calibration.uniformity_p_value(found, 300) < 0.01
    assert rejected <= 2


def test_level_of_the_uniformity_check():
    # What the shared calibration set does to the plain test, and that the size
    # N M / (N + M) repairs it.
    plain, corrected = 0, 0
    for seed in range(400):
        scores = np.random.default_rng(seed).normal(size=200)
        found = P_VALUES(scores[:100], scores[100:])
        plain += calibration.uniformity_p_value(found) < 0.05
        corrected += calibration.uniformity_p_value(found, 100) < 0.05
    assert corrected <= binom.ppf(0.999, 400, 0.05)
    assert plain > 2 * corrected


def test_uniformity_of_plain_uniforms_is_the_textbook_test():
    values = np.random.default_rng(0).random(50)
    holes = np.concatenate([values, [np.nan]])
    expected = kstest(values, "uniform").pvalue
    np.testing.assert_allclose(calibration.uniformity_p_value(holes), expected)
    assert np.isnan(calibration.uniformity_p_value(np.array([np.nan])))


def _scores(rng, n, shift):
    """Three correlated attacks, one heavy-tailed, one useless."""
    common = rng.normal(size=n)
    return {
        "a": common + rng.normal(size=n) + shift,
        "b": common + rng.standard_t(2, size=n) + shift,
        "c": rng.normal(size=n),
    }


def test_false_positives_between_two_sets_of_nonmembers():
    trials, wrong, low = 100, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        verdict = calibration.dataset_inference(
            _scores(rng, 100, 0.0),
            _scores(rng, 80, 0.0),
            alpha=0.05,
            seed=seed,
            splits=5,
        )
        wrong += verdict.decision == "member"
        low += verdict.seed_p_values[0] <= 0.05
    # The level holds (upper 99.9 % point of chance), for one split as for all.
    assert wrong <= binom.ppf(0.999, trials, 0.05)
    assert low <= binom.ppf(0.999, trials, 0.05)


def test_members_are_found_and_the_effect_points_to_them():
    rng = np.random.default_rng(0)
    verdict = calibration.dataset_inference(
        _scores(rng, 200, 0.9), _scores(rng, 200, 0.0)
    )
    assert verdict.decision == "member"
    assert verdict.p_value <= calibration.ALPHA == verdict.alpha
    assert 0 < verdict.effect.low < verdict.effect.value < verdict.effect.high
    np.testing.assert_allclose(
        verdict.p_value, min(1, 2 * np.median(verdict.seed_p_values))
    )
    written = json.loads(json.dumps(to_dict(verdict, tagged=False)))
    assert from_dict(DatasetVerdict, written) == verdict


def test_lower_scores_are_no_evidence():
    """Members and non-members that change places, as with swapped models."""
    rng = np.random.default_rng(0)
    suspects, nonmembers = _scores(rng, 200, 0.8), _scores(rng, 200, 0.0)
    assert calibration.dataset_inference(suspects, nonmembers).p_value < 0.01
    swapped = calibration.dataset_inference(nonmembers, suspects)
    assert swapped.p_value == 1
    assert swapped.decision == "no evidence"


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_lower_p_value_is_the_rank_test(shift):
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=60) + shift, rng.normal(size=70)
    wins = sum((a < b) + 0.5 * (a == b) for a in own for b in other)
    # The normal approximation with a correction for continuity.
    z = (wins - 0.5 - 60 * 70 / 2) / np.sqrt(60 * 70 * 131 / 12)
    found = calibration.lower_p_value(np.append(own, np.nan), other)
    assert found == pytest.approx(norm.sf(z))
    assert calibration.lower_p_value(np.array([np.nan]), other) is None


def test_missing_scores_cost_texts_or_the_score():
    rng = np.random.default_rng(1)
    suspects, nonmembers = _scores(rng, 60, 0.0), _scores(rng, 60, 0.0)
    suspects["a"][:5] = np.nan
    suspects["c"][:] = np.nan
    verdict = calibration.dataset_inference(suspects, nonmembers)
    assert verdict.scores_used == ("a", "b")
    assert (verdict.n_suspect, verdict.n_nonmembers) == (55, 60)


def test_q_values_are_the_smallest_rate_at_which_a_text_is_selected():
    rng = np.random.default_rng(4)
    p_values = np.where(rng.random(40) < 0.2, np.nan, rng.random(40) ** 3)
    found = calibration.q_values(p_values)
    tested = sorted(p for p in p_values if not np.isnan(p))
    for p, q in zip(p_values, found, strict=True):
        if np.isnan(p):
            assert np.isnan(q)
            continue
        rates = [
            other * len(tested) / sum(t <= other for t in tested)
            for other in tested
            if other >= p
        ]
        np.testing.assert_allclose(q, min(1.0, *rates), rtol=1e-12)


def test_constant_scores_are_no_evidence():
    same = {"a": np.ones(50)}
    verdict = calibration.dataset_inference(same, same)
    assert (verdict.p_value, verdict.decision) == (1.0, "no evidence")
    assert verdict.effect.value == 0


def test_too_few_texts_or_no_common_score_are_refused():
    few = {"a": np.arange(10.0)}
    with pytest.raises(InputError, match="at least 20"):
        calibration.dataset_inference(few, {"a": np.arange(50.0)})
    with pytest.raises(InputError, match="none is there"):
        calibration.dataset_inference(few, {"b": np.arange(50.0)})
