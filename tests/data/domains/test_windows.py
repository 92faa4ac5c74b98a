import random
import re

import pytest

from lt_mia_jax.data.domains.windows import FEWEST_WORDS, head, windows

TOKEN = re.compile(r"\w{1,16}|[^\w\s]")


def made_text(length: int) -> str:
    pick = random.Random(length)
    pieces = ["word", "(", "):", "\n    ", " ", "x", "\n\n", "lang" * 20, "é", "=="]
    return "".join(pick.choices(pieces, k=length))


@pytest.mark.parametrize("length", [0, 10, 60, 200, 1_000, 5_000])
def test_windows_hold_the_words_of_the_text_in_order(length):
    text = made_text(length)
    cut = list(windows(text))
    words = TOKEN.findall(text)
    found = [word for window in cut for word in TOKEN.findall(window)]
    assert found == words[: len(found)]
    assert len(words) - len(found) < FEWEST_WORDS
    assert all(window in text for window in cut)
    counts = [len(TOKEN.findall(window)) for window in cut]
    assert all(count == 112 for count in counts[:-1])
    assert all(FEWEST_WORDS <= count <= 112 for count in counts)


def test_head_is_the_beginning_of_the_text():
    text = made_text(2_000).lstrip("\n")
    assert text.startswith(head(text) or "missing")
    assert len(TOKEN.findall(head(text) or "")) == 144
    short = "a b " * 30
    assert head(short) == short.rstrip()


def test_short_texts_are_dropped():
    assert head("word " * (FEWEST_WORDS - 1)) is None
    assert head("word " * FEWEST_WORDS) is not None
    assert head("") is None
    assert list(windows(" \n")) == []


def test_a_long_run_of_letters_is_cut():
    assert len(head("a" * 100_000) or "") == 144 * 16


def test_indentation_of_the_first_line_stays():
    text = "\n\n    first line\n    second" + " word" * 100
    assert (head(text) or "").startswith("    first line\n    second")
