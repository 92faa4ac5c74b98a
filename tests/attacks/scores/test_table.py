"""The table of published scores names each function of `formulas` once."""

import inspect

import numpy as np
import pytest

from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.scores import formulas, table
from lt_mia_jax.features.statistics import TokenStatistics


def stats(**changes) -> TokenStatistics:
    rng = np.random.default_rng(0)
    shape = (3, 7)
    values = {name: -rng.exponential(size=shape) for name in TokenStatistics._fields}
    values |= {
        "target_rank": rng.integers(1, 9, shape),
        "target_top1": rng.random(shape) < 0.5,
        "valid": np.ones(shape, bool),
        "target_var": rng.exponential(size=shape),
        "cross_var": rng.exponential(size=shape),
    }
    return TokenStatistics(**{**values, **changes})


def test_every_published_function_has_a_row_and_a_source():
    annotated = {
        name
        for name, value in vars(formulas).items()
        if inspect.isfunction(value) and "Source: " in (value.__doc__ or "")
    }
    assert {row.name for row in table.SCORES} == annotated
    assert len({row.label for row in table.SCORES}) == len(table.SCORES)
    for row in table.SCORES:
        assert row.source
        assert row.meaning
        assert getattr(scores, row.name) is row.function


def test_scores_are_left_out_without_what_they_need():
    full = scores.all_scores(stats(), zlib_bytes=np.ones(3), lower_loss=np.ones(3))
    assert list(full) == [row.name for row in table.SCORES]
    alone = scores.all_scores(stats(reference_log_prob=None))
    missing = {"reference", "ratio", "ez", "wbc", "binoculars", "zlib", "lowercase"}
    assert set(alone) == set(full) - missing
    without = stats(target_mean=None, target_var=None, cross_mean=None, cross_var=None)
    whole = {"min_k_plus_plus", "entropy", "fast_detectgpt", "binoculars"}
    found = scores.all_scores(without, zlib_bytes=np.ones(3), lower_loss=np.ones(3))
    assert set(found) == set(full) - whole
    some = scores.all_scores(stats(), only=("ez", "zlib"), zlib_bytes=np.ones(3))
    assert list(some) == ["ez", "zlib"]


def test_the_fraction_is_used_and_named():
    found = scores.all_scores(stats(), fraction=0.5, only=("min_k", "loss"))
    lowest = np.sort(stats().target_log_prob, axis=1)[:, : int(0.5 * 7)]
    np.testing.assert_allclose(found["min_k"], lowest.mean(axis=1))
    assert scores.describe("min_k") == ("Min-K% 20 %", scores.describe("min_k").meaning)
    label, meaning = scores.describe("min_k", scores.CARD_FRACTION)
    assert label == "Min-K% 40 %"
    assert "40 %" in meaning
    assert scores.describe("loss", 0.4).label == "Loss"


def test_unknown_scores_show_under_their_name():
    assert scores.describe("one_of_mine") == ("one_of_mine", "")
    assert scores.describe(scores.LEARNED).label == "LT-MIA"
    with pytest.raises(AttributeError, match="no_such"):
        _ = scores.no_such
