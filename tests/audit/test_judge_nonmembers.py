"""Verdicts that must not be given."""

import random

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from tiny_world import sentences

from lt_mia_jax import load_pair
from lt_mia_jax.attacks.controls import compare_sets
from lt_mia_jax.audit.judge import judge
from lt_mia_jax.audit.scoring import ModelPair, ScoredTexts
from lt_mia_jax.audit.verdict import SWAPPED
from lt_mia_jax.errors import InputError


def drawn(seed, count):
    """Sentences without the numbers that tell seeds apart."""
    return [text.rsplit(" ", 1)[0] for text in sentences(seed, count)]


def scored(words, values, seed=0):
    noise = np.random.default_rng(seed).normal(size=len(values))
    return ScoredTexts(
        name="texts",
        target="t",
        reference="r",
        corpus="c",
        ids=[f"{n}" for n in range(len(values))],
        n_tokens=np.full(len(values), 9),
        scores={"lt_mia": values, "loss": values + 0.1 * noise},
        flags=[[]] * len(values),
        words=words,
    )


def rising(count, shift, seed):
    return np.random.default_rng(seed).normal(size=count) + shift


def run(words, known, shift=3.0, independent=None):
    values = rising(len(words), shift, 1), rising(len(known), 0, 2)
    every = np.ones(len(words), bool) if independent is None else independent
    return judge(
        scored(words, values[0]),
        scored(known, values[1]),
        primary="lt_mia",
        independent=every,
    ), values


def test_like_with_like_is_judged():
    found, (own, other) = run(drawn(1, 60), drawn(2, 80))
    assert found.comparison.decision == "alike"
    assert found.dataset.decision == "member"
    slow = [(1 + sum(other >= score)) / 81 for score in own]
    np.testing.assert_allclose(found.p_values, slow)
    expected = mannwhitneyu(own, other, alternative="less").pvalue
    assert found.lower == pytest.approx(expected)


def shorter(texts):
    pick = random.Random(0)
    return [" ".join(text.split()[: pick.randrange(8, 16)]) for text in texts]


DIFFERENT = {
    "length": shorter,
    "language": lambda texts: [text.replace("the", "der") for text in texts],
    "layout": lambda texts: [text.replace(" ", "\n", 9) for text in texts],
    "numbers": lambda texts: [f"{text} 1917 2041" for text in texts],
}


@pytest.mark.parametrize("change", DIFFERENT)
@pytest.mark.parametrize("side", ["texts", "non-members"])
def test_texts_of_another_kind_are_not_accused(change, side):
    sets = drawn(1, 60), drawn(2, 80)
    moved = int(side == "non-members")
    changed = DIFFERENT[change](sets[moved])
    found, _ = run(*((sets[0], changed) if moved else (changed, sets[1])))
    assert found.comparison.decision == "different"
    assert found.comparison.auc.value > 0.9
    assert found.p_values is None
    assert found.q_values is None
    assert found.dataset is None
    assert found.calibration is None


def test_the_statistic_that_differs_most_is_named():
    words = drawn(1, 60)
    found = compare_sets(words, [f"{text}19172041" for text in drawn(2, 60)])
    assert found.statistic == "share of digits"
    shares = [sum(map(str.isdigit, text)) / len(text) for text in words]
    assert found.suspects == pytest.approx(np.median(shares))


def test_sets_drawn_alike_are_rarely_told_apart():
    found = [
        compare_sets(drawn(2 * n + 1, 40), drawn(2 * n + 2, 40), seed=n)
        for n in range(20)
    ]
    decisions = [each.decision for each in found]
    assert decisions.count("different") <= 1
    assert abs(np.mean([each.auc.value for each in found]) - 0.5) < 0.06


def test_few_texts_are_not_compared():
    found, _ = run(drawn(1, 9), drawn(2, 40))
    assert found.comparison.decision == "untested"
    assert found.dataset is None
    assert "9 distinct texts" in found.notes[0]
    assert np.isfinite(found.p_values).all()


def test_near_copies_do_not_make_a_set():
    """One lucky text, thirty times, is one text."""
    words = drawn(1, 40)
    independent = np.arange(40) < 11
    found, _ = run(words, drawn(2, 40), independent=independent)
    assert found.dataset is None
    assert len(found.p_values) == 40


def test_swapped_models_score_members_lower():
    found, _ = run(drawn(1, 40), drawn(2, 40), shift=-2)
    assert found.lower < SWAPPED
    assert found.dataset.decision == "no evidence"


def test_equal_weights_are_refused(world, pair: ModelPair):
    with pytest.raises(InputError, match="same weights as the reference"):
        load_pair(str(world.base), str(world.base), pair.executor)
