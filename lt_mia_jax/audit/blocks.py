"""Texts as blocks of token rows, one a text or one a window, and back to texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.audit.windows import Combine, combined, windows
from lt_mia_jax.data.chat.rendering import NO_RESPONSE
from lt_mia_jax.data.chat.rows import Chat
from lt_mia_jax.data.texts import Text
from lt_mia_jax.data.tokenize import SHORT, Encoded, encode

BLOCK = 512
"""Rows whose statistics are held at a time, so memory does not grow with the texts."""


class Block(NamedTuple):
    """Some rows."""

    given: list[str | Chat | None]
    """The text of each row; None for a window that holds a part of one."""
    encoded: Encoded
    """B rows of tokens."""
    owner: Int[np.ndarray, " B"]
    """Index of the text of each row; ascending."""


def blocks(
    texts: Sequence[Text], tokenizer: Any, overlap: int | None, **cut: Any
) -> Iterator[Block]:
    """All texts, cut (`overlap` is None) or in windows.

    `cut` are the options of `encode`; windows have no `side`.
    """
    given = [text.content for text in texts]
    if overlap is None:
        for start in range(0, len(texts), BLOCK):
            own = given[start : start + BLOCK]
            rows = np.arange(start, start + len(own))
            yield Block([*own], encode(own, tokenizer, **cut), rows)
        return
    options = {name: value for name, value in cut.items() if name != "side"}
    for part in windows(given, tokenizer, overlap=overlap, most=BLOCK, **options):
        owned = zip(part.owner.tolist(), part.whole, strict=True)
        rows = [given[row] if whole else None for row, whole in owned]
        yield Block(rows, part.encoded, part.owner)


class Measured(NamedTuple):
    """What was measured on rows or texts; one entry each."""

    scores: Mapping[str, Float[np.ndarray, " _"]]
    n_tokens: Int[np.ndarray, " _"]
    words: Sequence[str]
    flags: Sequence[Sequence[str]]


def by_text(
    texts: int,
    owner: Int[np.ndarray, " W"],
    steps: Int[np.ndarray, " W"],
    found: Measured,
    combine: Combine,
) -> Measured:
    """What was measured on texts, from that on their windows.

    `steps` are the scored steps of each window. Flags of a window say nothing of a text
    that has several; it is short if all of them together are.
    """
    counts = np.bincount(owner, minlength=texts)
    words, flags = [""] * texts, [[NO_RESPONSE] for _ in range(texts)]
    for row, part, own in zip(owner.tolist(), found.words, found.flags, strict=True):
        words[row] += part
        flags[row] = [*own] if counts[row] == 1 else []
    total = np.bincount(owner, steps, texts).astype(np.int64)
    for row in np.flatnonzero((counts > 1) & (total < SHORT)):
        flags[row] = [f"short: {total[row]} scored tokens"]
    scores = {
        name: combined(np.asarray(x, np.float64), owner, steps, texts, combine)
        for name, x in found.scores.items()
    }
    tokens = np.bincount(owner, found.n_tokens, texts).astype(np.int64)
    return Measured(scores, tokens, words, flags)
