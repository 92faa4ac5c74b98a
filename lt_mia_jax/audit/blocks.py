"""Texts as blocks of token rows, one a text or one a window, and back to texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.data.chat.rendering import NO_RESPONSE
from lt_mia_jax.data.chat.rows import Chat
from lt_mia_jax.data.texts import Text
from lt_mia_jax.data.tokenize import Encoded, encode
from lt_mia_jax.data.windows import Combine, combined, windows

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


class ByText(NamedTuple):
    """What was measured on windows, by text; N entries each."""

    scores: dict[str, Float[np.ndarray, " N"]]
    n_tokens: Int[np.ndarray, " N"]
    words: list[str]
    flags: list[list[str]]


def by_text(
    texts: int,
    owner: Int[np.ndarray, " W"],
    steps: Int[np.ndarray, " W"],
    scores: Mapping[str, Float[np.ndarray, " W"]],
    n_tokens: Int[np.ndarray, " W"],
    words: Sequence[str],
    flags: Sequence[Sequence[str]],
    combine: Combine,
) -> ByText:
    """Scores, tokens, words and flags of texts from those of their windows.

    `steps` are the scored steps of each window. Flags of a window, such as that it is
    short, say nothing of a text that has several.
    """
    counts = np.bincount(owner, minlength=texts)
    whole, said = [""] * texts, [[NO_RESPONSE] for _ in range(texts)]
    for row, part, own in zip(owner.tolist(), words, flags, strict=True):
        whole[row] += part
        said[row] = [*own] if counts[row] == 1 else []
    found = {
        name: combined(np.asarray(x, np.float64), owner, steps, texts, combine)
        for name, x in scores.items()
    }
    tokens = np.bincount(owner, n_tokens, texts).astype(np.int64)
    return ByText(found, tokens, whole, said)
