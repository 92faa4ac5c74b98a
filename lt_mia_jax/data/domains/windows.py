"""Cutting documents to a size, without a tokenizer."""

import re
from collections.abc import Iterator

WINDOW_WORDS = 112
"""Words in a window: at least 128 tokens of most vocabularies in running text."""
HEAD_WORDS = 144
"""Words in the head of a unit: more, because signs of code share tokens."""
FEWEST_WORDS = 52
"""A document with fewer words is dropped: it would fill less than half a window."""

# A run of letters counts once per 16 characters, so that no window is huge.
_WORD = re.compile(r"\w{1,16}|[^\w\s]")


def head(text: str, words: int = HEAD_WORDS) -> str | None:
    """The first `words` words of a text with their spacing; None when too short.

    A word is a run of letters, digits and underscores (at most 16 of them) or one
    other sign.
    """
    return next(windows(text, words), None)


def windows(text: str, words: int = WINDOW_WORDS) -> Iterator[str]:
    """A text cut into stretches of `words` words, without overlap.

    Stretches below `FEWEST_WORDS` (the last one, usually) are left out.
    """
    # Line ends before words keep the indentation of a first line.
    start, count = None, 0
    for match in _WORD.finditer(text):
        if start is None:
            start = text.rfind("\n", 0, match.start()) + 1
            if text[start : match.start()].strip():
                start = match.start()
        count += 1
        end = match.end()
        if count == words:
            yield text[start:end]
            start, count = None, 0
    if start is not None and count >= FEWEST_WORDS:
        yield text[start:].rstrip()
