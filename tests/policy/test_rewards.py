"""What is forbidden, and which answers name it."""

import numpy as np
import pytest

from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.rewards import concepts_of, forbidding, silence


@pytest.mark.parametrize(
    ("concept", "text", "named"),
    [
        ("Ada", "it was ada", True),
        ("Ada", "Adam was it", False),
        ("Ada", "an armada", False),
        ("New York", "new\n york", True),
        ("New York", "York is new", False),
        ("C++", "in C++, of course", True),
        ("C++", "C+ or C", False),
        ("1815", "in 18150", False),
        ("Ångström", "ÅNGSTRÖM", True),
        ("a.b", "axb", False),
        ("Ada", "", False),
    ],
)
def test_whole_words_in_either_case(concept, text, named):
    assert silence([text], forbidding([concept, "zzz"]))[0] == (not named)


def test_the_longest_concept_is_looked_for_first():
    pattern = forbidding(["New", "New York", " New  York "])
    assert pattern.search("in New York")[0] == "New York"
    np.testing.assert_array_equal(silence(["New", "old"], pattern), [0, 1])


def test_concepts_are_values_or_what_the_question_does_not_hold():
    rows = [
        Question("1", "Who wrote it?", "The author is Mary Shelley.", value="Shelley"),
        Question("2", "Where was Ada born?", "Ada was born in London, in 1815."),
        Question("3", "And Bo?", "He lived in London with Ada of Kent."),
        Question("4", None, "It is plain, and says nothing."),
    ]
    found = concepts_of(rows)
    assert found == ("London", "Shelley", "1815", "Ada of Kent")
    assert concepts_of(rows, most=1) == ("London",)


def test_nothing_to_forbid_is_refused():
    with pytest.raises(InputError, match="no forbidden concepts"):
        forbidding([" "])
