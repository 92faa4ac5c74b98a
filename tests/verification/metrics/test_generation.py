import numpy as np
import pytest
from oracle_unlearning_metrics import lcs_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import generation


def test_rouge_equals_its_definition_on_words_without_stems():
    rng = np.random.default_rng(0)
    words = ["red", "cat", "dog", "sun", "sky", "pen"]
    pairs = [
        [list(rng.choice(words, rng.integers(1, 8))) for _ in range(2)]
        for _ in range(30)
    ]
    said, true = ([" ".join(p[i]) for p in pairs] for i in (0, 1))
    common = np.array([lcs_oracle(a, b) for a, b in pairs])
    precision = common / [len(a) for a, _ in pairs]
    recall = common / [len(b) for _, b in pairs]
    np.testing.assert_allclose(generation.rouge_l_recall(said, true), recall)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    np.testing.assert_allclose(generation.rouge_l_f1(said, true), f1)
    bags = [sum(min(a.count(w), b.count(w)) for w in words) / len(a) for a, b in pairs]
    np.testing.assert_allclose(generation.rouge_1_precision(said, true), bags)
    assert np.abs(precision - bags).max() > 0.1


def test_rouge_is_stemmed_and_forgives_case_and_silence():
    found = generation.rouge_l_recall(
        ["She RUNS, writing!", ""], ["she run write", "a b"]
    )
    np.testing.assert_array_equal(found, [1, 0])


def test_f1_of_muse_tells_forms_of_a_word_apart():
    forms = ["run", "runs", "running", "cat", "cats", "walk", "walked"]
    rng = np.random.default_rng(1)
    pairs = [[list(rng.choice(forms, 6)) for _ in range(2)] for _ in range(8)]
    said, true = ([" ".join(p[i]) for p in pairs] for i in (0, 1))

    def f1(pairs):
        return [lcs_oracle(a, b) / 6 for a, b in pairs]

    stems = {"runs": "run", "running": "run", "cats": "cat", "walked": "walk"}
    joined = [[[stems.get(w, w) for w in side] for side in pair] for pair in pairs]
    np.testing.assert_allclose(generation.rouge_l_f1(said, true), f1(pairs))
    stemmed = generation.rouge_l_f1(said, true, stem=True)
    np.testing.assert_allclose(stemmed, f1(joined))
    assert stemmed.mean() > np.mean(f1(pairs)) + 0.1


QUESTION, ANSWER = "Who wrote it", "Mara Lind did"


def test_memo_of_a_perfect_memory_is_one_and_of_an_empty_one_zero():
    whole = f"{QUESTION} {ANSWER}"
    for mode in ("suffix", "prefix"):
        perfect = generation.memo(
            [QUESTION], [ANSWER], lambda ps: [whole[len(p) :] for p in ps], mode=mode
        )
        assert perfect.tolist() == [1]
        none = generation.memo(
            [QUESTION], [ANSWER], lambda ps: ["zzz qqq" for _ in ps], mode=mode
        )
        assert none.tolist() == [0]


def test_memo_prompts_and_mean():
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return ["ara blue", "lind did", "did", ""]

    found = generation.memo([QUESTION, QUESTION], [ANSWER, "is ."], generate)
    # Suffixes: "ara Lind did", "ind did", "id" and "s ."; k = 1, 6, 11 and 1.
    assert asked == [f"{QUESTION} {a}" for a in ("M", "Mara L", "Mara Lind d", "i")]
    np.testing.assert_allclose(found, [(1 / 2 + 1 / 2 + 0) / 3, 0])
    asked.clear()
    generation.memo(
        [QUESTION], ["is ."], lambda ps: asked.extend(ps) or ["s"], separator="\n"
    )
    assert asked == [f"{QUESTION}\ni"]
    found = generation.memo(
        [QUESTION, QUESTION], [ANSWER, "7"], lambda ps: [""] * len(ps)
    )
    np.testing.assert_array_equal(found, [0, np.nan])


def test_fluency():
    uniform = "a b c d e"  # 4 pairs and 3 triples, each once
    found = generation.ngram_entropy([uniform, "a a a a", "a"])
    np.testing.assert_allclose(
        found,
        [np.mean([2 / 3 * np.log2(4), 4 / 3 * np.log2(3)]), 0, 0],
        atol=1e-15,
    )


def test_bad_input_is_told():
    with pytest.raises(InputError, match="predictions 1, references 2"):
        generation.rouge_l_recall(["a"], ["a", "b"])
    with pytest.raises(InputError, match="found one text"):
        generation.rouge_l_f1("a", ["a"])
    with pytest.raises(InputError, match="no text"):
        generation.rouge_l_f1([], [])
    with pytest.raises(InputError, match=r"1 references have no word, first \[1\]"):
        generation.rouge_l_recall(["a", "a"], ["a", "..."])
    with pytest.raises(InputError, match="returned 1 texts for 3 prompts"):
        generation.memo([QUESTION], [ANSWER], lambda ps: [""])
    with pytest.raises(InputError, match="more than one character"):
        generation.memo([QUESTION], ["7"], lambda ps: [""])
