"""The report card from stored values: against counting, and at its corners."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.verification import card as cards
from lt_mia_jax.verification.card import accepted_runs, knowledge_left
from lt_mia_jax.verification.items import Items, Measured
from lt_mia_jax.verification.metrics.traces import Trace
from lt_mia_jax.verification.records import Card, Risk
from lt_mia_jax.verification.storage import card_to_json

RNG = np.random.default_rng(0)


def report_card(*measured, **settings):
    """The card as it stands in files."""
    return card_to_json(cards.report_card(*measured, **settings))


def items(count, *, ratio=None, probability=None):
    nothing = np.full(count, np.nan)
    return Items(
        probability=RNG.random(count) if probability is None else probability,
        rouge=RNG.random(count),
        exact_memorization=RNG.random(count),
        extraction_strength=RNG.random(count),
        slot_accuracy=nothing,
        slot_log_rank=nothing,
        truth_ratio=nothing if ratio is None else ratio,
        normalized_probability=nothing,
        generated=tuple(f"{i:07b}".replace("", " ") for i in range(count)),
    )


def measured(forget=40, holdout=60, *, shift=0.0, **rest):
    return Measured(
        {"forget": items(forget, ratio=RNG.random(forget)), "retain": items(30)},
        {name: RNG.normal(shift, 1, forget) for name in ("loss", "min_k")},
        {name: RNG.normal(0, 1, holdout) for name in ("loss", "min_k")},
        **rest,
    )


def test_attacks_against_counting():
    one, truth = measured(50, 1000, shift=1.0), measured(50, 1000)
    card = report_card(one, truth)
    forget, holdout = one.forget_scores["loss"], one.holdout_scores["loss"]
    wins = (forget[:, None] > holdout[None]).mean()
    assert card["auc_loss"]["value"] == pytest.approx(wins)
    assert card["auc_loss"]["low"] < wins < card["auc_loss"]["high"]
    gap = forget.mean() - holdout.mean()
    assert card["loss_gap_nats"]["value"] == pytest.approx(gap)
    best = max((forget >= t).mean() for t in holdout if (holdout >= t).mean() <= 0.01)
    assert card["tpr_loss"]["value"] == pytest.approx(best, abs=0.02)
    assert not card["tpr_loss"]["refused"]
    areas = [
        (x.forget_scores["min_k"][:, None] > x.holdout_scores["min_k"][None]).mean()
        for x in (one, truth)
    ]
    leak = 100 * ((1 - areas[0]) - (1 - areas[1])) / (1 - areas[1])
    assert card["priv_leak"]["value"] == pytest.approx(leak)
    assert card["leak_min_k"]["value"] == pytest.approx(leak)


def test_every_number_has_an_interval_that_holds_it():
    one, truth, before = (measured(shift=s) for s in (0.5, 0.0, 2.0))
    knows = items(40, ratio=RNG.random(40), probability=RNG.uniform(0.8, 1.0, 40))
    before = before._replace(sets={**before.sets, "forget": knows})
    sets = {
        name: items(20, ratio=RNG.random(20))._replace(
            normalized_probability=RNG.random(20)
        )
        for name in ("retain", "real_authors", "world_facts")
    }
    one = one._replace(sets={**one.sets, **sets})
    card = report_card(one, truth, original=before)
    estimates = {name: x for name, x in card.items() if isinstance(x, dict)}
    shares = estimates.pop("equivalence")["shares"]
    estimates |= {f"shares/{part}": x for part, x in shares.items()}
    for name in ("utility_parts", "completeness_gap"):
        found = estimates.pop(name)
        estimates |= {f"{name}/{part}": x for part, x in found.items()}
    bare = {"forget_quality", "tpr_loss", "tpr_min_k"}  # exact test; refused
    assert len(estimates) > 25
    for name in estimates.keys() - bare:
        found = estimates[name]
        assert found["low"] <= found["value"] <= found["high"], name
        assert found["low"] < found["high"], name
    shares = [x.sets["forget"].probability.mean() for x in (before, one, truth)]
    left = (shares[1] - shares[2]) / (shares[0] - shares[2])
    assert card["forget_knowledge_left"]["value"] == pytest.approx(left)
    parts = [x["value"] for x in card["utility_parts"].values()]
    mean = len(parts) / sum(1 / x for x in parts)
    assert card["model_utility"]["value"] == pytest.approx(mean)


def test_utility_that_cannot_be_had_is_told():
    sets = dict.fromkeys(("retain", "real_authors", "world_facts"), items(4))
    card = report_card(Measured({"forget": items(4), **sets}))
    assert "model_utility" not in card
    assert card["notes"][0].startswith("No model utility")


def test_no_scale_no_knowledge_left():
    one = items(6).probability
    assert knowledge_left(one, one / 2, one + 0.001) is None


def test_rates_of_few_texts_are_refused():
    card = report_card(measured(50, 999))
    assert card["tpr_loss"] == {"rate": 0.01, "refused": True, "n_holdout": 999}


def test_beside_itself():
    one = measured()
    card = report_card(one, one, original=one)
    assert card["forget_quality"]["value"] == 1
    assert card["priv_leak"] == {"value": 0, "low": 0, "high": 0}
    assert card["told_from_retrained"]["value"] == pytest.approx(0, abs=1e-9)
    zero = {"value": 0, "low": 0, "high": 0}
    assert card["completeness_gap"] == {"p05": zero, "p50": zero, "p95": zero}


def test_completeness_knows_both_ends():
    truth = measured()
    zero = truth.sets["forget"].probability

    def complete(probability):
        one = Measured({"forget": items(40, probability=probability)})
        bare = Measured({"forget": truth.sets["forget"]})
        return report_card(one, bare)["completeness"]["value"]

    assert complete(np.ones(40)) < 0.1
    assert complete(np.ones(40)) < complete(zero) < complete(np.full(40, 1e-6))


def test_what_was_not_measured_is_left_out():
    bare = Measured({"forget": items(3)}, memo=np.array([0.5, np.nan, 1.0]))
    card = report_card(bare)
    assert set(card) == {
        "n_forget",
        "risk",
        *(
            f"forget_{name}"
            for name in (
                *("probability", "rouge", "exact_memorisation"),
                *("extraction_strength", "memo", "fluency"),
            )
        ),
    }
    assert card["forget_memo"]["value"] == 0.75
    single = report_card(Measured({"forget": items(1)}))["forget_rouge"]
    assert single["low"] is None
    assert report_card(bare, bare)["notes"][0].startswith("No forget quality")


def test_sets_that_differ_by_more_than_training():
    one = measured()
    apart = one._replace(
        forget_scores={name: x + 100 for name, x in one.forget_scores.items()}
    )
    card = report_card(one, apart)
    assert "priv_leak" not in card
    assert "draw them from one source" in card["notes"][0]


def test_risk_counts_texts_that_can_be_extracted():
    strength = np.array([0.2, 0.5, 0.9, np.nan, 0.0, 0.49, 1.0, 0.1])
    forget = items(8)._replace(extraction_strength=strength)
    found = cards.report_card(Measured({"forget": forget}), risk_level=0.7).risk
    assert (found.n, found.level) == (7, 0.7)
    assert found.value == pytest.approx((3 + 1) / (7 + 1))
    assert found.low < found.value < found.high
    tail = binom.cdf(3, 7, 0.7)
    r = 3 / 7
    h = r * np.log(r / 0.7) + (1 - r) * np.log((1 - r) / 0.3)
    assert found.p_value == pytest.approx(min(np.exp(-7 * h), np.e * tail))


def test_accepted_runs_share_the_error():
    def judged(p):
        base = Card(n_forget=1, forget_probability=Estimate(0.5))
        risk = None if p is None else Risk(value=0.1, level=0.1, p_value=p, n=9)
        return replace(base, risk=risk)

    # 0.05 among three; a card without a risk does not count.
    found = accepted_runs([judged(p) for p in (0.001, None, 0.02, 0.016)])
    assert found == [True, False, False, True]
    assert accepted_runs([judged(None)]) == [False]


def test_traces_and_distances_stand_on_the_card():
    right, distance = np.array([0.0, 0.5, 1.0, 1.0, 1.0]), np.linspace(0, 0.4, 40)
    one = measured()._replace(trace=Trace(right, 0.02), distance=distance)
    found = cards.report_card(one, measured())
    assert found.trace_accuracy.value == 0.7
    assert found.trace_accuracy.low < 0.7 < found.trace_accuracy.high
    assert (found.trace_accuracy.p_value, found.trace_accuracy.n) == (0.02, 5)
    assert found.retrain_distance.value == pytest.approx(0.2)
    # Without a retrained model there is no distance to it.
    assert cards.report_card(one).retrain_distance is None
