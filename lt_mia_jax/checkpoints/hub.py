"""From a model argument to a local directory, perhaps a snapshot from the hub."""

import re
from pathlib import Path

from lt_mia_jax.errors import InputError

BASE = Path(__file__).parent / "base"
"""A tiny pretrained Mamba that comes with the package; its card is beside it."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SNAPSHOT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "intervention.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
)
"""Files to fetch; pickled weights are never fetched."""


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local directory of a model, fetched from the hub if it is not a path.

    `revision` is a branch, tag or commit of the hub; None is the main branch.

    Raises:
      InputError: it is neither an existing directory nor a hub id that can be fetched.
    """
    path, name = Path(path_or_id), str(path_or_id)
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise InputError(f"{path}: is a file, expected a directory with config.json")
    if isinstance(path_or_id, Path) or not HUB_ID.fullmatch(name):
        raise InputError(
            f"{name!r}: no such directory, and not a hub id such as 'openai/gpt2'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(SNAPSHOT_FILES)
            )
        )
    # The exception for no network, no repository or no permission changes with every
    # major version.
    except Exception as error:
        raise InputError(
            f"{name}: no such local directory, and the hub did not give it "
            f"({type(error).__name__}: {error}); check the spelling, the network and "
            "your access, or pass a directory"
        ) from error
