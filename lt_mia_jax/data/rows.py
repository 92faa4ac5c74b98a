"""Rows of published data sets: from the Hugging Face hub, or from downloaded files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_mia_jax.errors import InputError

ENDINGS = {
    "parquet": (".parquet",),
    "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst"),
}
"""Endings of the files that are read, by loader of the `datasets` library."""


def hub_rows(
    path: str, config: str | None = None, *, what: str = "", **options: Any
) -> Iterable[Any]:
    """Rows of one split of a data set on the hub.

    `path`, `config` and further options are those of `datasets.load_dataset`; `what`
    follows `path` in messages.

    Raises:
      InputError: the hub cannot be reached, or has no such data set.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(path, config, **options)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"data set {path}{what} cannot be loaded from the hub "
            f"({type(error).__name__}: {error}); accept its terms if it has any, or "
            "download its files and give the folder instead"
        ) from error


def file_rows(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    """Rows of Parquet or JSON files of one kind, in order.

    Raises:
      InputError: a file cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    names, loader = [str(path) for path in files], kind_of(files[0])
    assert loader is not None
    try:
        # Streaming reads the files where they are instead of copying them.
        yield from load_dataset(loader, data_files=names, split="train", streaming=True)
    except StopIteration:  # a file without rows
        return
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{names[0]}: cannot be read ({type(error).__name__}: {error}); download "
            "it again"
        ) from error


def kind_of(path: Path) -> str | None:
    """Loader for a file, by its ending; None for other files."""
    kinds = (kind for kind, ends in ENDINGS.items() if path.name.endswith(ends))
    return next(kinds, None)
