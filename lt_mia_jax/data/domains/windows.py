"""Cutting documents to a size by words, without a tokenizer."""

import re
from collections.abc import Iterator

WINDOW_WORDS = 112
"""Words per window: at least 128 tokens of prose in most vocabularies."""
HEAD_WORDS = 144
"""Words in the head of a unit; more, because symbols of code share tokens."""
FEWEST_WORDS = 52
"""Documents with fewer words are dropped, because they fill less than half a window."""

# A run of letters counts once per 16 characters, so that no window is huge.
_WORD = re.compile(r"\w{1,16}|[^\w\s]")


def head(text: str) -> str | None:
    """The first `HEAD_WORDS` words of a text with their spacing; None if too short.

    A word is a run of at most 16 letters, digits and underscores, or one other sign.
    """
    return next(windows(text, HEAD_WORDS), None)


def windows(text: str, words: int = WINDOW_WORDS) -> Iterator[str]:
    """A text cut into windows of `words` words, without overlap.

    A last window with fewer than `FEWEST_WORDS` words is dropped.
    """
    # A window starts after a line end, so that its first line stays indented.
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
