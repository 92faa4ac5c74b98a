import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_unlearning_metrics import answer_oracle, lcs_oracle, strength_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification import metrics
from lt_mia_jax.verification.metrics import AnswerStatistics


def random_case(batch=7, steps=12, vocabulary=9, seed=0):
    """Answers in the middle of padded rows; logits that often hit, with ties."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(vocabulary, size=(batch, steps)).astype(np.int32)
    logits = np.round(2 * rng.normal(size=(batch, steps, vocabulary)), 1)
    logits[:, :-1][rng.random((batch, steps - 1)) < 0.7, :] -= 2
    for b in range(batch):
        for t in np.flatnonzero(rng.random(steps - 1) < 0.7):
            logits[b, t, ids[b, t + 1]] = 4
    mask = np.zeros((batch, steps), np.uint8)
    for b in range(batch):
        start = rng.integers(0, 4)
        mask[b, start : start + rng.integers(2, 8)] = 1
    return logits.astype(np.float32), ids, mask


def from_matches(*rows):
    """Statistics whose answers have these matches, the end token's included."""
    width = max(map(len, rows)) + 1
    match, valid = np.zeros((2, len(rows), width), bool)
    for i, row in enumerate(rows):
        match[i, : len(row)] = row
        valid[i, : len(row)] = True
    zeros = np.zeros(match.shape, np.float32)
    return AnswerStatistics(zeros, match, np.ones(match.shape, np.int32), valid)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_and_their_means_equal_the_definition(seed):
    logits, ids, mask = random_case(seed=seed)
    stats = metrics.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    items = answer_oracle(logits, ids, mask)
    for name, column in (("nll", 0), ("match", 1), ("rank", 2)):
        found, valid = np.asarray(getattr(stats, name)), np.asarray(stats.valid)
        expected = [step[column] for steps in items for step in steps]
        np.testing.assert_allclose(found[valid], expected, rtol=1e-5, atol=1e-6)
        assert not found[~valid].any()
    np.testing.assert_allclose(
        metrics.probability(stats),
        [np.exp(-np.mean([s[0] for s in steps])) for steps in items],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        metrics.slot_log_rank(stats),
        [np.mean([np.log(s[2]) for s in steps]) for steps in items],
        rtol=1e-12,
    )
    np.testing.assert_array_equal(
        metrics.slot_accuracy(stats), [all(s[1] for s in steps) for steps in items]
    )


@pytest.mark.parametrize("drop_final", [True, False])
def test_matches_equal_the_definition(drop_final):
    logits, ids, mask = random_case(batch=40, seed=4)
    stats = metrics.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    hits = [
        [s[1] for s in steps][: len(steps) - drop_final]
        for steps in answer_oracle(logits, ids, mask)
    ]
    expected = [np.mean(row) if row else np.nan for row in hits]
    found = metrics.exact_memorisation(stats, drop_final=drop_final)
    np.testing.assert_allclose(found, expected)
    expected = [strength_oracle(row) if row else np.nan for row in hits]
    found = metrics.extraction_strength(stats, drop_final=drop_final)
    np.testing.assert_allclose(found, expected)
    assert len(np.unique(found[~np.isnan(found)])) > 5  # the case tells them apart


def test_hand_cases():
    # The last label is the end token, which no case of these counts.
    stats = from_matches(
        [1, 1, 1, 1, 0],  # all of the answer
        [1, 1, 1, 0, 1],  # last token wrong
        [0, 1, 1, 1, 1],  # only the first wrong
        [0, 0, 0, 0, 1],
        [1],  # an answer of nothing but the end token
    )
    strength = metrics.extraction_strength(stats)
    np.testing.assert_array_equal(strength, [1, 0, 3 / 4, 0, np.nan])
    exact = metrics.exact_memorisation(stats)
    np.testing.assert_array_equal(exact, [1, 3 / 4, 3 / 4, 0, np.nan])
    assert metrics.macro_average(strength) == 1.75 / 4
    whole = metrics.extraction_strength(stats, drop_final=False)
    np.testing.assert_allclose(whole, [0, 1 / 5, 4 / 5, 1 / 5, 1])


def test_a_span_alone_is_scored_by_its_own_mask():
    logits, ids, mask = random_case(seed=7)
    slot = np.zeros_like(mask)
    slot[:, 5] = 1
    stats = metrics.answer_statistics(*map(jnp.asarray, (logits, ids, slot)))
    assert (np.asarray(stats.valid).sum(axis=1) == 1).all()
    expected = logits[:, 4].argmax(axis=1) == ids[:, 5]
    np.testing.assert_array_equal(metrics.slot_accuracy(stats), expected)
    # Neither the prompt's logits nor those after the span matter.
    changed = np.full_like(logits, np.nan)
    changed[:, 4] = logits[:, 4]
    again = metrics.answer_statistics(*map(jnp.asarray, (changed, ids, slot)))
    jax.tree.map(np.testing.assert_array_equal, stats, again)


def test_padding_and_half_precision():
    logits, ids, mask = random_case(seed=9)
    short = metrics.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    pad = ((0, 0), (0, 5))
    wide = metrics.answer_statistics(
        jnp.pad(jnp.asarray(logits), (*pad, (0, 0)), constant_values=jnp.nan),
        jnp.pad(jnp.asarray(ids), pad),
        jnp.pad(jnp.asarray(mask), pad),
    )
    np.testing.assert_array_equal(metrics.mean_nll(wide), metrics.mean_nll(short))
    half = jnp.asarray(logits, jnp.bfloat16)
    stats = metrics.answer_statistics(half, jnp.asarray(ids), jnp.asarray(mask))
    assert stats.nll.dtype == jnp.float32
    items = answer_oracle(np.asarray(half, np.float32), ids, mask)
    expected = [np.mean([s[0] for s in steps]) for steps in items]
    np.testing.assert_allclose(metrics.mean_nll(stats), expected, rtol=1e-5)


def test_rank_among_candidates():
    true = np.array([-1.0, -1.0, -1.0, -1.0])
    others = np.array([[-2.0, -3], [0, -3], [0, -0.5], [-1, -1]])
    np.testing.assert_array_equal(metrics.candidate_rank(true, others), [1, 2, 3, 2])


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
    np.testing.assert_allclose(metrics.rouge_l_recall(said, true), recall)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    np.testing.assert_allclose(metrics.rouge_l_f1(said, true), f1)
    bags = [sum(min(a.count(w), b.count(w)) for w in words) / len(a) for a, b in pairs]
    np.testing.assert_allclose(metrics.rouge_1_precision(said, true), bags)
    assert np.abs(precision - bags).max() > 0.1


def test_rouge_is_stemmed_and_forgives_case_and_silence():
    found = metrics.rouge_l_recall(["She RUNS, writing!", ""], ["she run write", "a b"])
    np.testing.assert_array_equal(found, [1, 0])


QUESTION, ANSWER = "Who wrote it", "Mara Lind did"


def test_memo_of_a_perfect_memory_is_one_and_of_an_empty_one_zero():
    whole = f"{QUESTION} {ANSWER}"
    for mode in ("suffix", "prefix"):
        perfect = metrics.memo(
            [QUESTION], [ANSWER], lambda ps: [whole[len(p) :] for p in ps], mode=mode
        )
        assert perfect.tolist() == [1]
        none = metrics.memo(
            [QUESTION], [ANSWER], lambda ps: ["zzz qqq" for _ in ps], mode=mode
        )
        assert none.tolist() == [0]


def test_memo_prompts_and_mean():
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return ["ara blue", "lind did", "did", ""]

    found = metrics.memo([QUESTION, QUESTION], [ANSWER, "is ."], generate)
    # Suffixes: "ara Lind did", "ind did", "id" and "s ."; k = 1, 6, 11 and 1.
    assert asked == [f"{QUESTION} {a}" for a in ("M", "Mara L", "Mara Lind d", "i")]
    np.testing.assert_allclose(found, [(1 / 2 + 1 / 2 + 0) / 3, 0])
    asked.clear()
    metrics.memo(
        [QUESTION], ["is ."], lambda ps: asked.extend(ps) or ["s"], separator="\n"
    )
    assert asked == [f"{QUESTION}\ni"]
    found = metrics.memo([QUESTION, QUESTION], [ANSWER, "7"], lambda ps: [""] * len(ps))
    np.testing.assert_array_equal(found, [0, np.nan])


def test_verbatim_and_knowledge_memorisation():
    assert metrics.cut_at_stop("Paris\n\nQuestion: next") == "Paris"
    assert metrics.cut_at_stop("Paris Question: x\n\ny") == "Paris "
    assert metrics.cut_at_stop("Paris") == "Paris"
    answers, true = ["a red cat Question: dog sun", "dog"], ["a red cat", "cat"]
    np.testing.assert_array_equal(metrics.knowledge_memorisation(answers, true), [1, 0])
    verbatim = metrics.verbatim_memorisation(answers, true)
    np.testing.assert_allclose(verbatim, [2 * (3 / 6) / (3 / 6 + 1), 0])


def test_fluency():
    uniform = "a b c d e"  # 4 pairs and 3 triples, each once
    found = metrics.ngram_entropy([uniform, "a a a a", "a"])
    np.testing.assert_allclose(
        found,
        [np.mean([2 / 3 * np.log2(4), 4 / 3 * np.log2(3)]), 0, 0],
        atol=1e-15,
    )


def test_bad_input_is_told():
    logits, ids, mask = random_case()
    logits[2, :, 0] = np.nan
    stats = metrics.answer_statistics(*map(jnp.asarray, (logits, ids, mask)))
    with pytest.raises(InputError, match=r"NaN in 1 of 7 answers, first \[2\]"):
        metrics.probability(stats)
    none = jax.tree.map(lambda x: x[:0], stats)
    with pytest.raises(InputError, match="at least one item"):
        metrics.extraction_strength(none)
    with pytest.raises(InputError, match="none of 2 items"):
        metrics.macro_average(np.full(2, np.nan))
    with pytest.raises(InputError, match="predictions 1, references 2"):
        metrics.rouge_l_recall(["a"], ["a", "b"])
    with pytest.raises(InputError, match="found one text"):
        metrics.rouge_l_f1("a", ["a"])
    with pytest.raises(InputError, match="no text"):
        metrics.rouge_l_f1([], [])
    with pytest.raises(InputError, match=r"1 references have no word, first \[1\]"):
        metrics.rouge_l_recall(["a", "a"], ["a", "..."])
    with pytest.raises(InputError, match="returned 1 texts for 3 prompts"):
        metrics.memo([QUESTION], [ANSWER], lambda ps: [""])
    with pytest.raises(InputError, match="more than one character"):
        metrics.memo([QUESTION], ["7"], lambda ps: [""])
    with pytest.raises(InputError, match="true_log_prob 2, other_log_probs 1"):
        metrics.candidate_rank(np.zeros(2), np.zeros((1, 3)))
