"""Which model an adapter belongs to."""

import logging
from pathlib import Path

from lt_mia_jax.checkpoints.adapters.config import is_adapter, read_adapter_config
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)


def base_of(directory: Path, fallback: str | Path | None = None) -> Path:
    """The base of the adapter in a directory: a model's directory or GGUF file.

    It is the one that adapter_config.json names, from the disk or the hub, else the
    `fallback`.

    Raises:
      InputError: there is neither, or the base is an adapter itself.
    """
    config = read_adapter_config(directory)
    problem = "names no base model"
    if config.base is not None:
        try:
            return _whole(config.base, directory, config.revision)
        except InputError as error:
            problem = f"has a base model that is not there ({error})"
    if fallback is None:
        raise InputError(
            f"{directory}: the adapter {problem}. Pass its base as --reference (audit, "
            "extract), or write its folder as base_model_name_or_path into "
            "adapter_config.json"
        )
    log.info("%s is taken as the base of the adapter %s", fallback, directory)
    return _whole(fallback, directory, None)


def _whole(base: str | Path, directory: Path, revision: str | None) -> Path:
    if is_gguf(base):
        return Path(base)
    found = resolve(base, revision)
    if is_adapter(found):
        raise InputError(
            f"{directory}: its base {base} is an adapter too; merge that one first "
            "(PEFT's merge_and_unload), and pass the result"
        )
    return found


def reference_of(model: str) -> str | None:
    """The base that an adapter names; None for whole models."""
    path = Path(model)
    if path.exists() and not path.is_dir():
        return None
    directory = resolve(model)
    return str(base_of(directory)) if is_adapter(directory) else None


def title_of(model: str) -> str:
    """What pages call a model: its last name, and the base of an adapter."""
    path = Path(model)
    if not path.is_dir() or is_gguf(path) or not is_adapter(path):
        return path.name
    # Folders of adapters are called "adapter" or "checkpoint-300".
    name = "/".join(path.absolute().parts[-2:])
    base = read_adapter_config(path).base
    return f"{name}, an adapter" + (f" of {Path(base).name}" if base else "")
