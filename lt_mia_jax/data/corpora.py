"""Corpora by name or file: distinct documents with ids that depend on the text only."""

import logging
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from lt_mia_jax import files
from lt_mia_jax.data.domains import DOMAINS
from lt_mia_jax.data.duplicates import NearDuplicates
from lt_mia_jax.data.formats.sources import COLUMN, is_source, source_name
from lt_mia_jax.data.hub import HUB_DATASETS, normalized
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.texts import (
    Text,
    contents,
    fingerprint,
    hash_unit,
    read_texts,
    text_id,
    write_texts,
)
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

FEW_DOCUMENTS = 2_000
"""A corpus with fewer documents is loaded with a warning."""

# Documents are compared by at least the part that is tokenized.
_COMPARED_CHARACTERS = 1_200
# Memory: about 10 kB a document with every n-gram, a quarter of that sampled.
_LARGE = 60_000
_LARGE_SAMPLE = 4
_CACHE_FORMAT = "1"


class Corpus(NamedTuple):
    """Distinct documents, near-copies removed, in a fixed order."""

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    code: bool
    """Whether long texts are cut on the left (`side="left"` of `encode`)."""
    versions: dict[str, str]
    """Versions of the packages, or the hash of the file, that contain the texts."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted ids; see `texts.fingerprint`."""
        return fingerprint(self.ids)

    def take(self, rows: Iterable[int]) -> "Corpus":
        """The corpus reduced to some rows, in the order given."""
        kept = [int(row) for row in rows]
        return self._replace(
            ids=tuple(self.ids[row] for row in kept),
            texts=tuple(self.texts[row] for row in kept),
        )


def load_corpus(
    name: str,
    *,
    local: Path | str | None = None,
    limit: int | None = None,
    cache: Path | str | None = None,
    column: str = COLUMN,
) -> Corpus:
    """Load a corpus without copies and near-copies.

    Args:
      name: an offline domain (`DOMAINS`), a data set of the hub (`HUB_DATASETS`) or
        what `read_texts` takes: a file, a folder of `.txt` files, `hub:NAME`.
      local: for a data set of the hub, a folder with its Parquet or JSON-lines files.
      limit: maximum number of documents; those with the lowest hashes are kept.
      cache: for an offline domain, a folder in which the documents are cached.
      column: of a file or `hub:NAME`, the field with the texts.

    Raises:
      InputError: an unknown name, a missing package or file, no documents.

    Example:
      >>> from lt_mia_jax import load_corpus
      >>> corpus = load_corpus("ucd_table", limit=2)
      >>> len(corpus.texts), corpus.code
      (2, False)
    """
    if local is not None and normalized(name) not in HUB_DATASETS:
        raise InputError(
            f"corpus {name!r} is not a data set of the hub, so it has no local folder"
        )
    if name in DOMAINS:
        corpus = _offline(name, None if cache is None else Path(cache))
    elif normalized(name) in HUB_DATASETS:
        corpus = _from_hub(name, None if local is None else Path(local))
    elif is_source(name):
        corpus = _from_file(Path(name), column)
    else:
        known = ", ".join([*DOMAINS, *HUB_DATASETS])
        raise InputError(
            f"no corpus named {name!r}; expected a .jsonl, .csv or .parquet file, a "
            f"folder of .txt files, hub:NAME, or one of {known}"
        )
    if limit is not None and limit < len(corpus.ids):
        rows = range(len(corpus.ids))
        by_hash = sorted(rows, key=lambda row: hash_unit("limit", corpus.ids[row]))
        corpus = corpus.take(sorted(by_hash[: max(limit, 0)]))
    if not corpus.ids:
        raise InputError(f"corpus {name}: no documents in it")
    if len(corpus.ids) < FEW_DOCUMENTS:
        log.warning(
            "corpus %s has %d documents, fewer than %d: intervals will be wide",
            name,
            len(corpus.ids),
            FEW_DOCUMENTS,
        )
    return corpus


def deduplicate(corpora: Sequence[Corpus]) -> list[Corpus]:
    """Remove documents that repeat earlier ones of the same or an earlier corpus.

    Use it before splitting if one run reads several corpora, so that no text is in two
    parts. Above 60,000 documents the overlap is estimated from a sample of n-grams.
    """
    large = sum(len(corpus.ids) for corpus in corpora) > _LARGE
    seen = NearDuplicates(sample=_LARGE_SAMPLE if large else 1)
    return [
        corpus.take(
            row
            for row, text in enumerate(corpus.texts)
            if seen.accept(_compared(text, corpus.code))
        )
        for corpus in corpora
    ]


def _offline(name: str, cache: Path | None) -> Corpus:
    domain = DOMAINS[name]
    versions = domain.versions()
    if cache is None:
        texts = domain.documents()
    else:
        key = files.fingerprint(repr((_CACHE_FORMAT, name, sorted(versions.items()))))
        path = cache / f"{name}-{key[:16]}.jsonl"
        if path.exists():
            texts = [row.text for row in read_texts(path)]
        else:
            texts = domain.documents()
            write_texts(path, ({"text": text} for text in texts))
    rows = [Text(text_id(text), text) for text in map(well_formed, texts)]
    return _corpus(name, rows, versions)


def _from_hub(name: str, local: Path | None) -> Corpus:
    dataset = HUB_DATASETS[normalized(name)]
    texts = map(well_formed, dataset.texts(local))
    versions = {
        "datasets": metadata.version("datasets"),
        dataset.path: dataset.revision or "main" if local is None else "local files",
    }
    rows = _without_copies(
        dataset.name, [Text(text_id(text), text) for text in texts], dataset.code
    )
    return _corpus(dataset.name, rows, versions, code=dataset.code)


def _from_file(path: Path, column: str) -> Corpus:
    rows = [row for row in read_texts(path, column=column) if row.text.strip()]
    found = files.content_sha256(path) or contents(rows)  # the hub has no file
    name = source_name(path)
    versions = {path.name: f"sha256:{found}"}
    return _corpus(name, _without_copies(name, rows, code=False), versions)


def _without_copies(name: str, rows: list[Text], code: bool) -> list[Text]:
    seen = NearDuplicates(sample=_LARGE_SAMPLE if len(rows) > _LARGE else 1)
    kept = [row for row in rows if seen.accept(_compared(row.text, code))]
    if len(kept) < len(rows):
        log.info(
            "corpus %s: %d of %d documents dropped as copies or near-copies",
            name,
            len(rows) - len(kept),
            len(rows),
        )
    return kept


def _corpus(
    name: str, rows: Iterable[Text], versions: dict[str, str], *, code: bool = False
) -> Corpus:
    """The corpus of the first row of each id."""
    by_id: dict[str, str] = {}
    for row in rows:
        by_id.setdefault(row.id, row.text)
    return Corpus(name, tuple(by_id), tuple(by_id.values()), code, versions)


def _compared(text: str, code: bool) -> str:
    if len(text) <= _COMPARED_CHARACTERS:
        return text
    return text[-_COMPARED_CHARACTERS:] if code else text[:_COMPARED_CHARACTERS]
