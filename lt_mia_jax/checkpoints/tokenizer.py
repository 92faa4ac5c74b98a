"""The tokenizer in a model directory, and whether it fits models and texts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lt_mia_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

E = TypeVar("E", bound=Any)
"""A NamedTuple with `input_ids` and `attention_mask`."""

SENTENCEPIECE = "tokenizer.model"
COMPLETE = ("tokenizer.json", "vocab.json")
"""Files that are read before `SENTENCEPIECE`."""

TOKENIZER_FILES = (*COMPLETE, SENTENCEPIECE, "spiece.model")
"""One of them must be present."""

TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ [0-9]+")
"""A line of a tiktoken file: a token in base64 and its rank."""


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local model directory; never runs code from it.

    Raises:
      InputError: the files are missing or broken.
    """
    if not has_tokenizer(directory):
        raise InputError(
            f"{directory}: no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy "
            "the files of the model that it was trained from"
        )
    model = directory / SENTENCEPIECE
    # Read from it alone, transformers makes a tokenizer of an empty file too.
    if model.is_file() and not any((directory / name).is_file() for name in COMPLETE):
        _check_sentencepiece(model)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    # The Rust tokenizer library raises bare Exception for a broken file.
    except Exception as error:
        raise InputError(
            f"{directory}: the tokenizer files cannot be read "
            f"({type(error).__name__}: {error}); get them again"
        ) from error


def _check_sentencepiece(path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    content = path.read_bytes()
    try:
        if not content:  # which it takes for no model at all
            raise ValueError("empty")
        SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:
        tiktoken = TIKTOKEN.fullmatch(content.split(b"\n")[0].strip())
        raise InputError(
            f"{path}: found {'a tiktoken file' if tiktoken else 'other content'}, "
            "expected a SentencePiece model; put the tokenizer.json of the model "
            "beside it"
        ) from error


def fit_vocabulary(
    encoded: E, tokenizer: Any, ids: Sequence[str], sizes: Mapping[str, int]
) -> E:
    """Encoded texts of which models can take every token.

    A tokenizer may have tokens beyond a model's embedding, such as an added `<pad>`, as
    long as no text has them. As padding they become id 0, which is masked.

    Args:
      encoded: token ids and mask of the texts.
      tokenizer: it made them.
      ids: names of the texts.
      sizes: number of ids that each model embeds, by what messages call it.

    Raises:
      InputError: a text has a token that a model lacks.
    """
    model, limit = min(sizes.items(), key=lambda item: item[1])
    tokens, real = encoded.input_ids, encoded.attention_mask != 0
    beyond = tokens >= limit
    if not beyond.any():
        return encoded
    if (beyond & real).any():
        row, column = np.argwhere(beyond & real)[0].tolist()
        token = int(tokens[row, column])
        raise InputError(
            f"text {ids[row]} has the token {tokenizer.convert_ids_to_tokens(token)!r} "
            f"with id {token}, but the {model} embeds only {limit} ids (0 to "
            f"{limit - 1}); leave that text out, or use the tokenizer and models that "
            "belong together"
        )
    return encoded._replace(input_ids=np.where(beyond, 0, tokens).astype(tokens.dtype))


def check_agreement(one: Any, other: Any, names: tuple[str, str], limit: int) -> None:
    """Refuse tokenizers that do not give the ids below `limit` to the same tokens.

    Ids that only one of them has do not count.

    Raises:
      InputError: they differ; names the first id.
    """
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    tokens = {number: token for token, number in first.items() if number < limit}
    both = [(n, token) for token, n in second.items() if n in tokens]
    differ = [(n, tokens[n], token) for n, token in both if tokens[n] != token]
    if differ or not both:
        number, left, right = min(differ, default=(0, None, None))
        raise InputError(
            f"the tokenizers of {names[0]} and {names[1]} differ: id {number} is "
            f"{left!r} in one and {right!r} in the other; both models must share one "
            "tokenizer: pass the model that the target was fine-tuned from"
        )
