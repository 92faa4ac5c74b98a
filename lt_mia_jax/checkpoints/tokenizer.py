"""The tokenizer in a model directory."""

from pathlib import Path
from typing import TYPE_CHECKING

from lt_mia_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""One of them must be present."""


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local model directory; never runs code from it.

    Raises:
      InputError: the files are missing or broken.
    """
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"{directory}: no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy "
            "the files of the model that it was trained from"
        )
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
