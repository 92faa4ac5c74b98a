"""Texts to token ids and masks, as the learned attack expects them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Bool, Int, UInt
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SHORT = 16
"""Below this many scored tokens, every score of a text is unreliable."""
_CHUNK = 1024
_BYTES = 256


class Encoded(NamedTuple):
    """Token ids of `N` texts, padded on the right to `T` tokens."""

    input_ids: Int[np.ndarray, "N T"]
    """int32; padding holds the pad id (or end-of-text)."""
    attention_mask: UInt[np.ndarray, "N T"]
    """uint8; 1 on real tokens, the appended end-of-text among them."""
    truncated: Bool[np.ndarray, " N"]
    """The text had more tokens than fit."""
    empty: Bool[np.ndarray, " N"]
    """Fewer than two tokens, so no step can be scored."""

    def take(self, rows: Int[np.ndarray, " M"]) -> "Encoded":
        """The texts of the given rows, in that order."""
        return Encoded(*(field[rows] for field in self))


def encode(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    length: int = 128,
    side: Literal["right", "left"] = "right",
) -> Encoded:
    """Tokenize, truncate, append end-of-text, pad.

    With an end-of-text id, `length - 1` tokens are kept and the id is appended, to
    truncated texts too; without one, `length` tokens are kept. No beginning-of-text
    id is added. A text without tokens keeps its row and is flagged `empty`. The whole
    text is tokenized before it is cut, because a prefix may have other tokens.

    Args:
      texts: any strings; a lone surrogate counts as U+FFFD.
      tokenizer: a tokenizer of the `transformers` library.
      length: tokens per row, end-of-text included.
      side: the end at which long texts are cut: "left" (keep the last tokens) for
        source code.

    Raises:
      InputError: `length` below 1.

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
    eos = tokenizer.eos_token_id
    keep = length if eos is None else max(1, length - 1)

    ids = np.full((len(texts), length), padding_id(tokenizer), np.int32)
    mask = np.zeros((len(texts), length), np.uint8)
    truncated = np.zeros(len(texts), bool)
    for start in range(0, len(texts), _CHUNK):
        encoded = tokenize(tokenizer, texts[start : start + _CHUNK])["input_ids"]
        for row, full in enumerate(encoded, start):
            kept = list(full[:keep] if side == "right" else full[-keep:])
            truncated[row] = len(full) > keep
            if eos is not None and len(kept) < length:
                kept.append(eos)
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = 1
    return Encoded(ids, mask, truncated, mask.sum(1) < 2)


def scored_texts(texts: Sequence[str], encoded: Encoded, tokenizer: Any) -> list[str]:
    """The part of each text that `encode` kept: all that a score may depend on.

    A text that was cut is decoded from the tokens that are left of it.

    Example:
      >>> from lt_mia_jax.data import encode, scored_texts, train_bpe
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> texts = ["be", "to be"]
      >>> scored_texts(texts, encode(texts, tokenizer, length=4), tokenizer)
      ['be', 'to ']
    """
    found = [well_formed(text) for text in texts]
    # The end-of-text token that `encode` appends is no part of the text.
    rest = int(tokenizer.eos_token_id is not None and encoded.input_ids.shape[1] > 1)
    for row in np.flatnonzero(encoded.truncated):
        kept = encoded.input_ids[row, : encoded.attention_mask[row].sum() - rest]
        found[row] = tokenizer.decode(
            kept.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    return found


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
    counts = encoded.attention_mask[:, 1:].sum(axis=1)
    for n, empty, truncated in zip(
        counts, encoded.empty, encoded.truncated, strict=True
    ):
        flags = []
        if empty:
            flags.append("empty: no score")
        elif n < SHORT:
            flags.append(f"short: {n} scored tokens")
        if truncated:
            flags.append("truncated")
        rows.append(flags)
    return rows


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Refuse a tokenizer with ids beyond the model's embedding.

    Raises:
      InputError: the highest id is not below `vocab_size`; names its token.
    """
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= vocab_size:
        raise InputError(
            f"the tokenizer has token {token!r} with id {highest} but the model "
            f"embeds only {vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer "
            "that the model was saved with"
        )


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
