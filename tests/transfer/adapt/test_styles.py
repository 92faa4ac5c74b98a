"""Which items change their answer style, how many, and into what."""

import doctest
from collections import Counter

import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.transfer.adapt import styles
from lt_mia_jax.transfer.adapt.styles import INSTRUCTIONS, Item, diversify

TASK = [Item(f"{n} + 1?", str(n + 1)) for n in range(50)]


def style_of(item):
    (found,) = [s for s, text in INSTRUCTIONS.items() if item.question.endswith(text)]
    return found


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_share_is_spread_evenly_over_the_other_styles(share):
    changed = diversify(TASK, "short", share=share)
    counts = Counter(style_of(item) for item in changed)
    moved = round(share * len(TASK))
    assert counts["short"] == len(TASK) - moved
    others = [counts[s] for s in INSTRUCTIONS if s != "short"]
    assert sum(others) == moved
    assert max(others) - min(others) <= 1
    for before, after in zip(TASK, changed, strict=True):
        assert after.question.startswith(before.question)
        if style_of(after) == "short":
            assert after.answer == before.answer


def test_every_style_keeps_the_truth():
    for item, true in zip(diversify(TASK, "short", share=1.0), TASK, strict=True):
        match style_of(item):
            case "yes/no":
                shown = item.question.split("Is the answer ")[1].split("?")[0]
                assert item.answer == ("yes" if shown == true.answer else "no")
            case "choice":
                assert f"{item.answer}: {true.answer}" in item.question
                options = item.question.split("? ")[1].split(".")[0].split(", ")
                assert len({o.split(": ")[1] for o in options}) == len(options) == 4
            case _:
                assert true.answer in item.answer
    answers = Counter(
        item.answer
        for item in diversify(TASK, "short", share=1.0)
        if style_of(item) in ("yes/no", "choice")
    )
    # No answer is right by default.
    assert min(answers[x] for x in ("yes", "no")) >= 6
    assert min(answers[x] for x in "ABCD") >= 3


def test_the_seed_decides_and_nothing_else():
    assert diversify(TASK, "brief", seed=1) == diversify(TASK, "brief", seed=1)
    assert diversify(TASK, "brief", seed=1) != diversify(TASK, "brief", seed=2)
    assert diversify(TASK, "brief", share=0.0) == TASK


def test_tasks_without_a_wrong_answer_are_refused():
    with pytest.raises(
        InputError, match="have 1 different answers, expected at least 2"
    ):
        diversify([Item("a?", "x"), Item("b?", "x")], "short")
    with pytest.raises(InputError, match="share = 2, expected 0 to 1"):
        diversify(TASK, "short", share=2.0)


def test_examples():
    found = doctest.testmod(styles)
    assert found.attempted > 2
    assert not found.failed
