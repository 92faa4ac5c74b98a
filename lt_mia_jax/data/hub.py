"""The paper's data sets, from the Hugging Face hub or a folder of their files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lt_mia_jax.data.rows import ENDINGS, file_rows, hub_rows, kind_of
from lt_mia_jax.errors import InputError

ROW_CAP = 200_000
"""Maximum number of rows read from the largest data sets."""
FEWEST_CHARACTERS = 50
"""Stripped texts must be longer than this."""

# The hub's conversion of data sets that were published as a script.
_PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class HubDataset:
    """Location and text fields of a data set, of which the train split is read."""

    name: str
    """Normalized: lower case, underscores."""
    path: str
    """Repository on the hub."""
    config: str | None = None
    """Configuration (subset); None is the default one."""
    revision: str | None = None
    """Branch to read; None is the main one."""
    folder: str | None = None
    """Folder inside the branch."""
    fields: tuple[str, ...] = ("text",)
    """Fields that hold the text."""
    rule: Literal["join", "first"] = "join"
    """Join the fields with spaces, or use the first that is not blank (without one, all
    string fields joined by newlines)."""
    streamed: bool = False
    """Stream rows over the network instead of downloading all files."""
    row_cap: int | None = None
    """Maximum number of rows to read, before the filter; None: all."""
    code: bool = False
    """Source code: long texts keep their last tokens."""

    def text(self, row: Mapping[str, Any]) -> str:
        """The text of one row; empty when its fields are.

        Raises:
          InputError: no such field.
        """
        if self.rule == "first":
            for field in self.fields:
                if isinstance(row.get(field), str) and row[field].strip():
                    return row[field]
            return "\n".join(value for value in row.values() if isinstance(value, str))
        missing = [field for field in self.fields if field not in row]
        if missing:
            raise InputError(
                f"data set {self.name}: no field {', '.join(missing)}; the fields are "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        return " ".join(row[field] or "" for field in self.fields)

    def texts(self, local: Path | None = None) -> Iterator[str]:
        """Texts longer than 50 characters, in order, from a folder or the hub (None).

        Raises:
          InputError: the data set cannot be opened, or lacks its fields.
        """
        if local is None:
            rows = hub_rows(
                self.path,
                self.config,
                split="train",
                revision=self.revision,
                data_dir=self.folder,
                streaming=self.streamed,
            )
        else:
            rows = file_rows(data_files(local, self.config))
        for row in islice(rows, self.row_cap):
            text = self.text(row)
            if len(text.strip()) > FEWEST_CHARACTERS:
                yield text


def data_files(folder: Path, config: str | None) -> list[Path]:
    """Sorted paths of the train files in a folder, all of one kind.

    A sub-folder with the name of the configuration, Parquet files, and files with
    "train" in their path are preferred.

    Raises:
      InputError: no such folder, or no data files in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of Parquet or JSON-lines files")
    if config is not None and (folder / config).is_dir():
        folder = folder / config
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for kind in ENDINGS:
        found = [path for path in files if kind_of(path) == kind]
        train = [
            path for path in found if "train" in str(path.relative_to(folder)).lower()
        ]
        if found:
            return train or found
    raise InputError(
        f"{folder}: no Parquet or JSON-lines files; expected *.parquet or *.jsonl"
    )


def normalized(name: str) -> str:
    """A data set's name in lower case with underscores."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


HUB_DATASETS = {
    dataset.name: dataset
    for dataset in (
        HubDataset("ag_news", "fancyzhx/ag_news"),
        HubDataset(
            "xsum", "EdinburghNLP/xsum", revision=_PARQUET_BRANCH, fields=("document",)
        ),
        HubDataset(
            "wikitext103",
            "Salesforce/wikitext",
            config="wikitext-103-raw-v1",
            row_cap=ROW_CAP,
        ),
        HubDataset(
            "wikipedia",
            "wikimedia/wikipedia",
            config="20231101.en",
            streamed=True,
            row_cap=ROW_CAP,
        ),
        HubDataset(
            "news_category_dataset",
            "heegyu/news-category-dataset",
            fields=("headline", "short_description"),
        ),
        HubDataset(
            "cnndm", "abisee/cnn_dailymail", config="3.0.0", fields=("article",)
        ),
        HubDataset(
            "arxiv",
            "ccdv/arxiv-summarization",
            revision=_PARQUET_BRANCH,
            folder="document",
            fields=("abstract",),
            streamed=True,
            row_cap=ROW_CAP,
        ),
        HubDataset(
            "swallow_code",
            "tokyotech-llm/swallow-code",
            config="swallow-code",
            fields=("text", "content", "code", "body", "document"),
            rule="first",
            streamed=True,
            row_cap=ROW_CAP,
            code=True,
        ),
    )
}
