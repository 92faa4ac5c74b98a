"""Rewards that a program can verify: does a text name what is to be forgotten?"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError

MOST = 50
"""Concepts that are kept; the number of PURGE."""

_WORD = r"[A-Z][\w'-]*"
_NAME = re.compile(rf"{_WORD}(?: (?:of|the|and|de|von|van)(?= [A-Z])| {_WORD})*")
_NUMBER = re.compile(r"\b\d[\d.,]*\d\b|\b\d\b")


def concepts_of(rows: Sequence[Question], most: int = MOST) -> tuple[str, ...]:
    """What the answers reveal: their `value`, or names and numbers in them.

    Of rows without a value, names are capitalized words, not at the beginning of the
    answer, that their question does not hold. The most frequent come first, of equally
    frequent ones the first in the rows.

    Example:
      >>> from lt_mia_jax.data.questions import Question
      >>> asked, answer = "Where was Ada born?", "Ada was born in New York in 1815."
      >>> concepts_of([Question("1", asked, answer)])
      ('New York', '1815')

    Source: PURGE, arXiv 2601.20568, which asks the model for them and keeps 50.
    """
    found: Counter[str] = Counter()
    for row in rows:
        if row.value is not None:
            found[row.value.strip()] += 1
            continue
        asked = (row.question or "").casefold()
        for match in (*_NAME.finditer(row.answer), *_NUMBER.finditer(row.answer)):
            word = match[0].strip()
            known = word.casefold() in asked
            if match.start() > 0 and len(word) > 1 and not known:
                found[word] += 1
    del found[""]
    return tuple(word for word, _ in found.most_common(most))


def forbidding(concepts: Sequence[str]) -> re.Pattern[str]:
    """A pattern of any of the concepts as whole words, in either case.

    Raises:
      InputError: there is no concept.
    """
    words = sorted({" ".join(c.split()) for c in concepts if c.strip()}, key=len)
    if not words:
        raise InputError(
            "no forbidden concepts: the texts to forget have no `value`, name or "
            "number in their answers; give a file with one concept a line"
        )
    spaced = (r"\s+".join(map(re.escape, word.split())) for word in reversed(words))
    # Not \b, which would ask for a word character at the end of "C++".
    return re.compile(rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)", re.IGNORECASE)


def silence(texts: Sequence[str], forbidden: re.Pattern[str]) -> Float[np.ndarray, "N"]:
    """1 for each text without a forbidden concept, else 0.

    Example:
      >>> silence(["It was Paris.", "Parisian food"], forbidding(["paris"]))
      array([0., 1.], dtype=float32)

    Source: PURGE, arXiv 2601.20568 (the reward phi).
    """
    return np.array([not forbidden.search(text) for text in texts], np.float32)
