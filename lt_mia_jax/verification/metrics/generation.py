"""Metrics of generated text: greedy answers come in as strings."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import PerItem, same_items, texts

Generate = Callable[[list[str]], list[str]]
"""Greedy continuations of prompts, without the prompts."""


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> PerItem:
    """ROUGE-L recall of each prediction, stemmed (TOFU, RWKU).

    The library keeps ASCII letters and digits only: texts in other scripts lose their
    words. TOFU generates up to 200 new tokens.

    Raises:
      InputError: a reference without a word.

    Source: Lin 2004, ROUGE; TOFU, arXiv 2401.06121, section 2.2.
    """
    return _rouge("rougeL", "recall", predictions, references)


def rouge_l_f1(
    predictions: Sequence[str], references: Sequence[str], *, stem: bool = False
) -> PerItem:
    """ROUGE-L F1 of each prediction: of words as they stand (MUSE), or of stems.

    Raises and limits as `rouge_l_recall`.

    Source: Lin 2004, ROUGE; MUSE, arXiv 2407.06460 (`metrics/logger.py` of its code).
    OpenUnlearning, arXiv 2506.12618, stems.
    """
    return _rouge("rougeL", "fmeasure", predictions, references, stem)


def rouge_1_precision(predictions: Sequence[str], references: Sequence[str]) -> PerItem:
    """ROUGE-1 precision of each prediction, stemmed (MEMO).

    Raises and limits as `rouge_l_recall`.

    Source: Lin 2004, ROUGE.
    """
    return _rouge("rouge1", "precision", predictions, references)


def memo(
    questions: Sequence[str],
    answers: Sequence[str],
    generate: Generate,
    *,
    mode: Literal["suffix", "prefix"] = "suffix",
    step: int = 5,
    separator: str = " ",
) -> PerItem:
    """MEMO of each item: mean ROUGE-1 precision over sliding prefixes, in [0, 1].

    Prefixes grow in characters, k = 1, 1 + step, ... Suffix mode prompts with the
    question and `answer[:k]` and expects `answer[k:]`; prefix mode prompts with
    `question[:k]` and expects the rest of the question and the answer.

    Args:
      questions: one an item.
      answers: one an item.
      generate: gets all prompts in one call; MEMO generates up to 200 tokens.
      mode: what is cut.
      step: characters between prefixes.
      separator: between question and answer, as the model was trained.

    Returns:
      Higher = more memorized. NaN where no prefix leaves a word to be expected; the
      authors' code gives such prefixes 0, which says nothing about the model.

    Source: MEOW, arXiv 2409.11844, and the authors' code.
    """
    questions, answers = texts("questions", questions), texts("answers", answers)
    same_items(questions=questions, answers=answers)
    if step < 1:
        raise InputError(f"step is {step}; expected at least 1 character")
    if mode not in ("suffix", "prefix"):
        raise InputError(f"mode is {mode!r}; expected 'suffix' or 'prefix'")
    items, prompts, expected = [], [], []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        whole = f"{question}{separator}{answer}"
        first = len(whole) - len(answer) if mode == "suffix" else 0
        last = len(whole) if mode == "suffix" else len(question)
        for cut in range(first + 1, last, step):
            if has_words(whole[cut:]):
                items.append(i)
                prompts.append(whole[:cut])
                expected.append(whole[cut:])
    if not prompts:
        raise InputError(
            f"no prefix of {len(answers)} answers leaves a word to be generated; "
            "answers need more than one character"
        )
    found = generate(prompts)
    if len(found) != len(prompts):
        raise InputError(
            f"generate returned {len(found)} texts for {len(prompts)} prompts; "
            "expected one each"
        )
    scores = rouge_1_precision(found, expected)
    count = np.bincount(items, minlength=len(questions))
    total = np.bincount(items, weights=scores, minlength=len(questions))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def ngram_entropy(predictions: Sequence[str]) -> PerItem:
    """Fluency of each text: weighted entropy of its word pairs and triples, in bits.

    `(2/3 H_2 + 4/3 H_3) / 2`; a text that repeats itself has little. Zero for texts of
    one word. Words are divided at spaces, by RWKU with nltk.

    Source: RWKU, arXiv 2406.10890 (weights and mean from its code).
    """
    return np.array(
        [
            1 / 3 * _entropy(words, 2) + 2 / 3 * _entropy(words, 3)
            for words in (text.split() for text in texts("predictions", predictions))
        ]
    )


def _rouge(
    kind: str,
    value: str,
    predictions: Sequence[str],
    references: Sequence[str],
    stem: bool = True,
) -> PerItem:
    predictions = texts("predictions", predictions)
    references = texts("references", references)
    same_items(predictions=predictions, references=references)
    empty = [i for i, text in enumerate(references) if not has_words(text)]
    if empty:
        raise InputError(
            f"{len(empty)} references have no word, first {empty[:5]}; ROUGE counts "
            "words of ASCII letters and digits"
        )
    scorer = _scorer(kind, stem)
    return np.array(
        [
            getattr(scorer.score(reference, prediction)[kind], value)
            for prediction, reference in zip(predictions, references, strict=True)
        ],
        dtype=np.float64,
    )


@lru_cache
def _scorer(kind: str, stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "ROUGE needs the package rouge-score: pip install rouge-score"
        ) from error
    return RougeScorer([kind], use_stemmer=stem)


def has_words(text: str) -> bool:
    """Whether ROUGE finds a word in it: ASCII letters and digits."""
    return any(c.isascii() and c.isalnum() for c in text.lower())


def _entropy(words: Sequence[str], n: int) -> float:
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(grams.values())
    return -math.fsum(c / total * math.log2(c / total) for c in grams.values())
