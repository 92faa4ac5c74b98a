"""The tokenizer in a model directory."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lt_mia_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
