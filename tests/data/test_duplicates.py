import random
import re

import pytest

from lt_mia_jax.data import duplicates
from lt_mia_jax.data.duplicates import NearDuplicates, copies, distinct

WORDS = [f"w{number}" for number in range(5_000)]


def sentence(pick: random.Random, length: int) -> list[str]:
    return pick.choices(WORDS, k=length)


def kept_slowly(texts, ngram, fraction):
    """The rule with tuples of words instead of hashes."""
    seen, kept = set(), []
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.casefold())
        if not words:
            continue
        width = min(ngram, len(words))
        grams = {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}
        if len(grams & seen) > fraction * len(grams):
            continue
        seen |= grams
        kept.append(text)
    return kept


def overlapping_texts(count: int) -> list[str]:
    """Texts of 1 to 80 words that share stretches of any length."""
    pick = random.Random(4)
    pool = [sentence(pick, 80) for _ in range(12)]
    texts = []
    for _ in range(count):
        shared = pick.choice(pool)[: pick.randrange(80)]
        own = sentence(pick, pick.randrange(1, 40))
        texts.append(" ".join(pick.choice([shared + own, own + shared, own])))
    return [*texts, "", " \n", "...", "Alpha", "alpha"]


@pytest.mark.parametrize(("ngram", "fraction"), [(13, 0.3), (5, 0.0), (3, 0.8)])
def test_matches_the_rule_written_with_tuples(ngram, fraction):
    texts = overlapping_texts(300)
    kept = distinct(texts, ngram=ngram, repeated_fraction=fraction)
    assert kept == kept_slowly(texts, ngram, fraction)
    assert 10 < len(kept) < len(texts)


def test_copies_go_and_order_stays():
    pick = random.Random(1)
    texts = [" ".join(sentence(pick, 60)) for _ in range(30)]
    repeated = [text for text in texts for _ in range(2)]
    assert distinct(repeated) == texts
    assert distinct(texts + [text.upper().replace(" ", "\n") for text in texts]) == (
        texts
    )


def test_the_threshold_counts_n_grams():
    pick = random.Random(2)
    first, other = sentence(pick, 112), sentence(pick, 112)
    for shared, kept in [(30, True), (42, True), (43, False), (100, False)]:
        # 112 words have 100 13-grams, of which shared - 12 were seen before.
        second = first[:shared] + other[shared:]
        assert len(distinct([" ".join(first), " ".join(second)])) == 1 + kept


def test_a_dropped_text_hides_no_other():
    pick = random.Random(3)
    a, b, c = (sentence(pick, 100) for _ in range(3))
    first = a
    dropped = a[:60] + b[:40]
    third = b[:40] + c[:60]
    texts = [" ".join(words) for words in (first, dropped, third)]
    assert distinct(texts) == [texts[0], texts[2]]


@pytest.mark.parametrize("sample", [2, 4, 16])
def test_a_sample_of_n_grams_finds_copies_and_spares_the_rest(sample):
    pick = random.Random(5)
    texts = [" ".join(sentence(pick, length)) for length in range(1, 150)]
    seen = NearDuplicates(sample=sample)
    assert all(seen.accept(text) for text in texts)
    assert not any(seen.accept(text) for text in texts)
    edited = [text.split()[:-5] + sentence(pick, 5) for text in texts[100:]]
    assert not any(seen.accept(" ".join(words)) for words in edited)


def copies_slowly(texts, ngram, fraction):
    """The rule by comparing all pairs of sets of tuples of words."""

    def grams(text):
        words = re.findall(r"\w+", text.casefold()) or [text.strip()]
        if len(words) < 8:
            return {tuple(words)}
        return {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)}

    sets = [grams(text) for text in texts]
    first = []
    for later, own in enumerate(sets):
        near = [
            earlier
            for earlier in range(later)
            if len(own & sets[earlier]) > fraction * min(len(own), len(sets[earlier]))
        ]
        first.append(first[near[0]] if near else later)
    return first


@pytest.mark.parametrize(("ngram", "fraction"), [(5, 0.5), (5, 0.8), (3, 0.2)])
def test_copies_follow_the_rule_written_with_pairs(ngram, fraction):
    texts = overlapping_texts(150)
    found = copies(texts, ngram=ngram, fraction=fraction).tolist()
    assert found == copies_slowly(texts, ngram, fraction)
    assert 10 < sum(n != first for n, first in enumerate(found)) < len(texts) - 10


def test_short_texts_are_compared_as_wholes():
    words = "one two three four five six seven eight nine ten".split()
    texts = [" ".join(words), " ".join(words[:5]), "# ONE two three, four five!"]
    assert copies(texts).tolist() == [0, 1, 1]
    assert copies(["...", "!!", "... ", ""]).tolist() == [0, 1, 0, 3]


def test_a_sample_of_the_ngrams_finds_copies_too(monkeypatch):
    pick = random.Random(3)
    texts = [" ".join(sentence(pick, 200)) for _ in range(40)]
    monkeypatch.setattr(duplicates, "_MOST_GRAMS", 1000)
    assert copies(texts + [f"# {text}" for text in texts]).tolist() == [*range(40)] * 2
