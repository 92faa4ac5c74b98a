"""Each sentence of a verdict says what its numbers say, and no more."""

import dataclasses

import numpy as np
import pytest

from lt_mia_jax.attacks.estimate import (
    AttackSummary,
    Comparison,
    DatasetVerdict,
    Estimate,
)
from lt_mia_jax.audit.records import CombinationSummary, Counts, Judged
from lt_mia_jax.audit.verdict import verdict


def summary(auc, low=None, high=None):
    return AttackSummary(
        auc=Estimate(auc, low, high), tpr={}, n_members=50, n_nonmembers=50, n_missing=0
    )


LABELED = CombinationSummary(
    name="a",
    target="t",
    reference="r",
    corpus="c",
    unseen=True,
    counts=Counts(texts=100, members=50, nonmembers=50, flagged=0),
    loss_gap_nats=Estimate(0.25, 0.2, 0.3),
    attacks={"lt_mia": summary(0.9), "ez": summary(0.8), "loss": summary(0.6)},
    controls={"permutation": summary(0.51, 0.4, 0.6), "blind": summary(0.5, 0.4, 0.6)},
)
SET = DatasetVerdict(
    p_value=0.001,
    decision="member",
    alpha=0.01,
    n_suspect=30,
    n_nonmembers=40,
    method="",
    effect=Estimate(1.0),
)


JUDGED = Judged(
    comparison=Comparison(decision="alike", auc=Estimate(0.5, 0.4, 0.6)),
    lower=0.9,
    p_values=np.array([0.01, 0.04, 0.5, np.nan]),
    q_values=np.array([0.03, 0.06, 0.5, np.nan]),
    dataset=SET,
)


def test_the_set_comes_first_then_single_texts():
    found = verdict([LABELED], "lt_mia", JUDGED)
    assert found[0].startswith("The set of texts as a whole shows")
    assert "p = 0.001, level 0.01" in found[0]
    assert "2 of 3 texts" in found[1]
    assert "1 remain" in found[1]
    innocent = dataclasses.replace(SET, decision="no evidence")
    found = verdict([LABELED], "lt_mia", JUDGED._replace(dataset=innocent))
    assert found[0].startswith("There is no evidence")


def compared(decision):
    return Comparison(
        decision=decision,
        auc=Estimate(0.71, 0.65, 0.78),
        statistic="words",
        suspects=120.0,
        nonmembers=45.0,
    )


def test_sets_that_differ_get_no_verdict():
    judged = Judged(comparison=compared("different"), lower=0.9)
    found = " ".join(verdict([], "lt_mia", judged))
    assert found.startswith("No verdict")
    assert "AUC of 0.710 [0.650, 0.780]" in found
    assert "words (median 120 against 45)" in found
    assert "p-value of at most" not in found
    assert "membership" not in found


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        ("doubtful", "P-values may be too small"),
        ("untested", "too few texts to test"),
        ("alike", ""),
    ],
)
def test_doubts_stand_beside_the_verdict(decision, words):
    judged = JUDGED._replace(comparison=compared(decision))
    found = verdict([], "lt_mia", judged)
    assert found[0].startswith("The set of texts as a whole shows")
    assert words in " ".join(found)
    assert len(found) == (2 if decision == "alike" else 3)


def test_swapped_models_are_asked_about():
    judged = JUDGED._replace(lower=1e-6)
    assert "swapped?" in " ".join(verdict([], "lt_mia", judged))
    other = Judged(comparison=compared("different"), lower=1e-6)
    assert "swapped" not in " ".join(verdict([], "lt_mia", other))
    low = dataclasses.replace(LABELED, attacks={"lt_mia": summary(0.22, 0.1, 0.3)})
    assert "swapped" in " ".join(verdict([low], "lt_mia"))
    chance = dataclasses.replace(LABELED, attacks={"lt_mia": summary(0.39, 0.2, 0.6)})
    for usual in (verdict([chance], "lt_mia"), verdict([LABELED], "lt_mia", JUDGED)):
        assert "swapped" not in " ".join(usual)


def test_a_combination_names_the_best_other_score():
    first, other, blind, permuted = verdict([LABELED], "lt_mia")
    assert "the learned attack has an AUC of 0.900" in first
    assert "0.250 [0.200, 0.300] nats" in first
    assert "EZ-MIA, reaches 0.800" in other
    assert "do not give membership away" in blind
    assert "as it must be" in permuted


@pytest.mark.parametrize(
    ("control", "estimate", "words"),
    [
        ("blind", (0.61, 0.55, 0.7), "differ as texts"),
        ("blind", (0.58, 0.51, 0.6), "a little above chance"),
        ("permutation", (0.6, 0.55, 0.7), "suspicious"),
    ],
)
def test_controls_that_fail_are_told(control, estimate, words):
    controls = {**LABELED.controls, control: summary(*estimate)}
    found = verdict([dataclasses.replace(LABELED, controls=controls)], "lt_mia")
    assert words in " ".join(found)


def test_several_combinations_open_with_their_range():
    other = dataclasses.replace(
        LABELED, name="b", unseen=False, attacks={"lt_mia": summary(0.7)}
    )
    found = verdict([other, LABELED], "lt_mia")
    assert "2 combinations judged here" in found[0]
    assert "between 0.700 and 0.900, mean 0.800" in found[0]
    assert found[1].startswith("On a ")  # unseen ones first


def test_without_labels_or_nonmembers_nobody_is_accused():
    counts = Counts(texts=7, members=None, nonmembers=None, flagged=0)
    bare = dataclasses.replace(LABELED, counts=counts, attacks={}, controls={})
    [found] = verdict([bare], "lt_mia")
    assert found.startswith("7 texts were scored and ranked")
