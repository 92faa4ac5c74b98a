"""Texts to token ids and masks, as the learned attack expects them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Bool, Int, UInt
from lt_mia_jax.data.chat.rendering import NO_RESPONSE, Piece, render
from lt_mia_jax.data.chat.rows import Chat, Messages
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SHORT = 16
"""Below this many scored tokens, every score of a text is unreliable."""
_CHUNK = 1024
_BYTES = 256


Bos = Literal["auto", "yes", "no"]
"""Whether a beginning-of-text token precedes a text; auto: as the tokenizer does it."""
Score = Literal["response", "all"]
"""Which tokens of a conversation are scored; plain texts have no context."""


class Encoded(NamedTuple):
    """Token ids of `N` texts, padded on the right to `T` tokens."""

    input_ids: Int[np.ndarray, "N T"]
    """int32; padding holds the pad id (or end-of-text)."""
    attention_mask: UInt[np.ndarray, "N T"]
    """uint8; 1 on real tokens, the appended end-of-text among them."""
    truncated: Bool[np.ndarray, " N"]
    """The text had more tokens than fit."""
    empty: Bool[np.ndarray, " N"]
    """No step can be scored: fewer than two tokens, or none of the response."""
    scored: Bool[np.ndarray, "N T"] | None = None
    """Tokens that belong to the scored text. The others are context, which the models
    see. None: all real tokens belong to it."""

    def take(self, rows: Int[np.ndarray, " M"]) -> "Encoded":
        """The texts of the given rows, in that order."""
        fields: Any = (None if field is None else field[rows] for field in self)
        return Encoded(*fields)


def scored_mask(encoded: Any) -> Bool[np.ndarray, "N T"]:
    """Tokens that belong to the scored texts; the first of a row has no score."""
    scored = getattr(encoded, "scored", None)
    return np.asarray(encoded.attention_mask) != 0 if scored is None else scored


def encode(
    texts: Sequence[str | Chat],
    tokenizer: Any,
    *,
    length: int = 128,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
    score: Score = "response",
) -> Encoded:
    """Tokenize, truncate, append end-of-text, pad.

    With an end-of-text id, `length - 1` tokens are kept and the id is appended, to
    truncated texts too; without one, `length` tokens are kept. A beginning-of-text id
    (`bos`) stays in front whatever is cut, counts in `length` and is never scored. A
    text without tokens keeps its row and is flagged `empty`. The whole text is
    tokenized before it is cut, because a prefix may have other tokens.

    Conversations are rendered by the tokenizer's chat template, which writes its own
    beginning and end; see `chat.rendering`. Of them only the response is scored, or
    all with `score="all"`.

    Args:
      texts: any strings (a lone surrogate counts as U+FFFD), or conversations.
      tokenizer: a tokenizer of the `transformers` library.
      length: tokens per row, end-of-text included.
      side: the end at which long texts are cut: "left" (keep the last tokens) for
        source code, and for responses after a long context.
      bos: whether to begin with the beginning-of-text id.
      score: the tokens of conversations that are scored.

    Raises:
      InputError: `length` below 1, no beginning-of-text id although one is wanted, or a
        conversation that cannot be rendered.

    Example:
      >>> from lt_mia_jax import encode
      >>> from lt_mia_jax.data import train_bpe
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> encoded = encode(["be", "to be"], tokenizer, length=4)
      >>> encoded.attention_mask.tolist(), encoded.truncated.tolist()
      ([[1, 1, 1, 0], [1, 1, 1, 1]], [False, True])

    Source: Learning the Signature of Memorization in Autoregressive Language Models,
    arXiv 2604.03199 (tokenization of the reference implementation); an empty row is
    kept here and dropped there.
    """
    if length < 1:
        raise InputError(f"length {length}: at least one token a text is needed")
    pieces = tokens_of(texts, tokenizer, score)
    return encode_pieces(
        pieces, len(texts), tokenizer, length=length, side=side, bos=bos
    )


def tokens_of(
    texts: Sequence[str | Chat], tokenizer: Any, score: Score
) -> Iterator[Piece]:
    """The tokens of each text before it is cut."""
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        strings = [text for text in chunk if isinstance(text, str)]
        plain = iter(tokenize(tokenizer, strings)["input_ids"] if strings else ())
        for text in chunk:
            if isinstance(text, str):
                yield Piece(list(next(plain)), None)
                continue
            piece = render(text, tokenizer)
            yield piece._replace(response=None) if score == "all" else piece


def encode_pieces(
    pieces: Iterable[Piece],
    count: int,
    tokenizer: Any,
    *,
    length: int,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
) -> Encoded:
    """`count` lists of tokens, cut to `length`, between beginning and end."""
    eos, token = tokenizer.eos_token_id, tokenizer.bos_token_id
    begin = beginning(tokenizer, bos)
    ids = np.full((count, length), padding_id(tokenizer), np.int32)
    mask = np.zeros((count, length), np.uint8)
    scored = np.zeros((count, length), bool)
    truncated = np.zeros(count, bool)
    for row, (full, response, ends) in enumerate(pieces):
        response = [True] * len(full) if response is None else response
        first = begin if ends else []
        if not ends and token is not None and full[:1] == [token]:  # the template's
            first = [] if bos == "no" else [token]
            full, response = full[1:], response[1:]
        elif not ends and bos == "yes":
            first = begin
        end = [] if eos is None or not ends else [eos]
        keep = max(1, length - len(first) - len(end))
        cut = slice(None, keep) if side == "right" else slice(-keep, None)
        kept = full[cut]
        first = first if kept and len(first) < length else []
        room = length - len(first) - len(kept)
        line = [*first, *kept, *end[:room]]
        # The end of a response is part of it, that of a context is not.
        marks = response[cut] or [True]
        marks = [False] * len(first) + marks[: len(kept)] + marks[-1:] * len(end[:room])
        truncated[row] = len(full) > keep
        ids[row, : len(line)] = line
        mask[row, : len(line)] = 1
        scored[row, : len(line)] = marks
    known = None if (scored == (mask != 0)).all() else scored
    return Encoded(ids, mask, truncated, scored[:, 1:].sum(axis=1) == 0, known)


def beginning(tokenizer: Any, bos: Bos = "auto") -> list[int]:
    """The ids in front of every text: that of beginning-of-text, or none.

    `auto` does what calling the tokenizer does, its post-processor included.

    Raises:
      InputError: `bos` is yes and there is no such token.
    """
    token = tokenizer.bos_token_id
    if bos == "no" or (bos == "auto" and token is None):
        return []
    if token is None:
        raise InputError(
            "--bos yes: the tokenizer has no beginning-of-text token; use auto or no"
        )
    added = list(tokenizer("a", verbose=False)["input_ids"][:1]) == [token]
    own = list(tokenize(tokenizer, ["a"])["input_ids"][0][:1]) == [token]
    return [token] if bos == "yes" or (added and not own) else []


def describe_beginning(tokenizer: Any, bos: Bos, like: str | Chat = "") -> str:
    """A sentence that says whether texts such as `like` begin with such a token."""
    if bos == "auto" and isinstance(like, Messages):
        return "Conversations begin as the chat template writes them (--bos auto)."
    why = "as the tokenizer does it" if bos == "auto" else "as asked for"
    if beginning(tokenizer, bos):
        return (
            f"Texts begin with the token {tokenizer.bos_token}, {why} (--bos {bos}), "
            "which is context and not scored."
        )
    return f"Texts begin without a beginning-of-text token, {why} (--bos {bos})."


def scored_texts(
    texts: Sequence[str | Chat | None], encoded: Encoded, tokenizer: Any
) -> list[str]:
    """The part of each text that `encode` kept: all that a score may depend on.

    A text that was cut is decoded from the tokens that are left of it, a response (or
    a window of a text, which has None) from those that are scored.

    Example:
      >>> from lt_mia_jax.data import encode, scored_texts, train_bpe
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> texts = ["be", "to be"]
      >>> scored_texts(texts, encode(texts, tokenizer, length=4), tokenizer)
      ['be', 'to ']
    """
    found = []
    mask = scored_mask(encoded)
    # The end-of-text token that `encode` appends is no part of the text.
    rest = int(tokenizer.eos_token_id is not None and encoded.input_ids.shape[1] > 1)
    for row, text in enumerate(texts):
        if isinstance(text, str) and not encoded.truncated[row]:
            found.append(well_formed(text))
            continue
        kept = encoded.input_ids[row][mask[row]].tolist()
        if isinstance(text, str):
            found.append(_decoded(tokenizer, kept[: len(kept) - rest]))
        else:
            special = set(tokenizer.all_special_ids)
            found.append(_decoded(tokenizer, [x for x in kept if x not in special]))
    return found


def lower_case(
    texts: Sequence[str | Chat | None],
    encoded: Encoded,
    tokenizer: Any,
    *,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
) -> Encoded:
    """The texts that `encode` kept, in lower case.

    Of conversations and windows only what is scored is lowered, behind the same
    context; special tokens stay.
    """
    plain = [row for row, text in enumerate(texts) if isinstance(text, str)]
    rows = encoded.take(np.array(plain, np.int64))
    own = scored_texts([texts[row] for row in plain], rows, tokenizer)
    lowered = tokens_of([text.lower() for text in own], tokenizer, "all")
    pieces = (
        next(lowered) if isinstance(text, str) else _lowered(encoded, row, tokenizer)
        for row, text in enumerate(texts)
    )
    length = encoded.input_ids.shape[1]
    return encode_pieces(
        pieces, len(texts), tokenizer, length=length, side=side, bos=bos
    )


def _lowered(encoded: Encoded, row: int, tokenizer: Any) -> Piece:
    """One row with its scored tokens in lower case."""
    special, mask = set(tokenizer.all_special_ids), scored_mask(encoded)[row]
    count = int(encoded.attention_mask[row].sum())
    tokens = zip(encoded.input_ids[row, :count].tolist(), mask, strict=False)
    ids, response = [], []
    for (marked, kept), run in groupby(
        tokens, key=lambda x: (bool(x[1]), not x[1] or x[0] in special)
    ):
        new = [token for token, _ in run]
        if not kept:
            new = tokenize(tokenizer, [_decoded(tokenizer, new).lower()])
            new = list(new["input_ids"][0])
        ids += new
        response += [marked] * len(new)
    return Piece(ids, response, ends=False)


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def tokenize(tokenizer: Any, texts: Iterable[str], **options: Any) -> Any:
    """What a tokenizer makes of whole texts, without special tokens and padding."""
    return tokenizer(
        [well_formed(text) for text in texts],
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )


def padding_id(tokenizer: Any) -> int:
    """The id of padding, else that of end-of-text, else 0."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id for id in ids if id is not None), 0)


def flag_texts(encoded: Encoded) -> list[list[str]]:
    """Warnings about the scores of each text: empty, short, truncated.

    `T` tokens give `T - 1` scores, because the first one is context only.
    """
    rows = []
    counts = scored_mask(encoded)[:, 1:].sum(axis=1)
    real = encoded.attention_mask.sum(axis=1)
    for n, tokens, empty, truncated in zip(
        counts, real, encoded.empty, encoded.truncated, strict=True
    ):
        flags = []
        if empty:
            lost = encoded.scored is not None and tokens > 1
            flags.append(NO_RESPONSE if lost else "empty: no score")
        elif n < SHORT:
            flags.append(f"short: {n} scored tokens")
        if truncated:
            flags.append("truncated")
        rows.append(flags)
    return rows


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, out_dir: Path | str | None = None
) -> Any:
    """Train a byte-level BPE tokenizer with an end-of-text token; deterministic.

    Args:
      texts: training texts. Texts that train a tokenizer should not be audited with
        it, so use texts of the pretrain role.
      vocab_size: number of ids: 256 bytes, end-of-text (id 0) and merges.
      out_dir: where to `save_pretrained`, so that `AutoTokenizer` opens it.

    Returns:
      A `transformers.PreTrainedTokenizerFast`. It has fewer ids, with a logged warning,
      if the texts are too few for the merges.

    Raises:
      InputError: `vocab_size` leaves no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _BYTES + 1:
        raise InputError(
            f"vocab_size {vocab_size}: at least {_BYTES + 1} are needed (the bytes and "
            f"{END_OF_TEXT})"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(well_formed, texts), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        log.warning(
            "the texts support only %d of %d BPE tokens",
            tokenizer.get_vocab_size(),
            vocab_size,
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    if out_dir is not None:
        wrapped.save_pretrained(str(out_dir))
    return wrapped
