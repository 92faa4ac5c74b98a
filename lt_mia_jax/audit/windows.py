"""Long texts as overlapping windows, in which every token is scored once."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Bool, Float, Int
from lt_mia_jax.data.chat.rendering import Piece
from lt_mia_jax.data.chat.rows import Chat
from lt_mia_jax.data.tokenize import (
    Bos,
    Encoded,
    Score,
    beginning,
    encode_pieces,
    tokens_of,
)
from lt_mia_jax.errors import InputError

_TEXTS = 16  # tokenized at a time: whole books fit into memory
Combine = Literal["mean", "max"]
"""How the scores of the windows of one text become one."""


class Windows(NamedTuple):
    """Some windows of texts, in their order."""

    encoded: Encoded
    """W rows of at most `length` tokens."""
    owner: Int[np.ndarray, " W"]
    """Index of the text of each window; ascending."""
    whole: Bool[np.ndarray, " W"]
    """The window holds a whole text."""


def windows(
    texts: Sequence[str | Chat],
    tokenizer: Any,
    *,
    length: int,
    overlap: int,
    bos: Bos = "auto",
    score: Score = "response",
    most: int = 512,
) -> Iterator[Windows]:
    """Texts as windows of `length` tokens, at most `most` windows at a time.

    Neighboring windows share at least `overlap` tokens, which are context in the second
    one: every token of a text but the first is scored once. The last window of a text
    is as long as the others. A text that fits into one window gives the row of
    `encode`. Windows in which nothing is scored are left out, except a text's only one.

    Args:
      texts: strings or conversations, as in `encode`.
      tokenizer: a tokenizer of the `transformers` library.
      length: tokens of a window, a beginning-of-text token included.
      overlap: tokens of context, at least 1.
      bos: whether every window begins with the beginning-of-text id.
      score: the tokens of conversations that are scored.
      most: windows in one element.

    Raises:
      InputError: `overlap` leaves no room for new tokens, or as `encode`.

    Example:
      >>> from lt_mia_jax.data import train_bpe
      >>> from lt_mia_jax.audit.windows import windows
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> (found,) = windows(["to be or"], tokenizer, length=6, overlap=2)
      >>> found.owner.tolist(), found.encoded.scored.sum(axis=1).tolist()
      ([0, 0], [6, 3])

    Source: the sliding window of https://huggingface.co/docs/transformers/perplexity.
    """
    begin = beginning(tokenizer, bos)
    most_context = length - 3
    if not 1 <= overlap <= most_context:
        raise InputError(
            f"--overlap {overlap}: expected 1 to {max(1, most_context)} at --length "
            f"{length}, so that every window has context and new tokens"
        )
    eos, token = tokenizer.eos_token_id, tokenizer.bos_token_id
    cut = (
        (row, piece)
        for start in range(0, len(texts), _TEXTS)
        for row, whole in enumerate(
            tokens_of(texts[start : start + _TEXTS], tokenizer, score), start
        )
        for piece in _cut(whole, eos, _start(whole, begin, token, bos), length, overlap)
    )
    while chunk := list(islice(cut, most)):
        pieces = [piece for _, (piece, _) in chunk]
        owner = np.array([row for row, _ in chunk], np.int64)
        whole = np.array([alone for _, (_, alone) in chunk], bool)
        encoded = encode_pieces(pieces, len(pieces), tokenizer, length=length, bos=bos)
        yield Windows(encoded, owner, whole)


def _start(piece: Piece, begin: list[int], token: int | None, bos: Bos) -> list[int]:
    """What stands before every window of a text; a template writes its own."""
    if piece.ends:
        return begin if piece.ids else []
    if token is not None and piece.ids[:1] == [token]:
        return [] if bos == "no" else [token]
    return begin if bos == "yes" else []


def _cut(
    piece: Piece, eos: int | None, start: list[int], length: int, overlap: int
) -> Iterator[tuple[Piece, bool]]:
    """The windows of one text, and whether it is the only one."""
    response = [True] * len(piece.ids) if piece.response is None else piece.response
    ids, marks = list(piece.ids), list(response)
    if piece.ends and eos is not None:
        ids, marks = [*ids, eos], [*marks, *(marks[-1:] or [True])]
    if not piece.ends and start and ids[:1] == start:
        ids, marks = ids[1:], marks[1:]
    room = length - len(start)
    if len(ids) + len(start) <= length:
        yield piece, True
        return
    done = 0
    while done < len(ids):
        first = max(0, min(done - overlap, len(ids) - room))
        new = [position >= done for position in range(first, first + room)]
        seen = [a and b for a, b in zip(new, marks[first : first + room], strict=True)]
        done = first + room
        if any(seen):
            context = [False] * len(start)
            yield Piece([*start, *ids[first:done]], [*context, *seen], False), False


def combined(
    scores: Float[np.ndarray, " W"],
    owner: Int[np.ndarray, " W"],
    weights: Int[np.ndarray, " W"],
    texts: int,
    rule: Combine,
) -> Float[np.ndarray, " N"]:
    """One score a text from those of its windows.

    `mean` weighs windows by their scored steps: the mean loss of a text is that of all
    its tokens. `max` takes the window that looks most like a member, for texts
    of which a passage may have been trained on. Texts without a window get NaN.

    Example:
      >>> import numpy as np
      >>> from lt_mia_jax.audit.windows import combined
      >>> scores, owner = np.array([1.0, 4.0, 7.0]), np.array([0, 0, 1])
      >>> combined(scores, owner, np.array([2, 1, 5]), 2, "mean").tolist()
      [2.0, 7.0]
    """
    found = np.full(texts, np.nan)
    if rule == "max":
        np.fmax.at(found, owner, scores)
        return found
    counts = np.bincount(owner, minlength=texts)
    single = counts[owner] == 1
    found[owner[single]] = scores[single]
    used = ~single & (weights > 0)
    total = np.bincount(owner[used], weights=weights[used], minlength=texts)
    sums = np.bincount(owner[used], weights=(scores * weights)[used], minlength=texts)
    many = total > 0
    found[many] = sums[many] / total[many]
    return found
