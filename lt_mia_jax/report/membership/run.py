"""Run folders of audits and evaluations: `summary.json` and `scores.jsonl`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.audit.records import RunSummary
from lt_mia_jax.configs import Count, read_record, refuse
from lt_mia_jax.data.jsonl import Row, read_jsonl
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, sha256_file

SUMMARY, SCORES = "summary.json", "scores.jsonl"
UNKNOWN = -1
"""The label of a text whose membership is not known."""
_AGAIN = "Run the command again that wrote it"


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """One row of `scores.jsonl`."""

    id: str
    n_tokens: Count
    scores: Mapping[str, float | None]
    flags: tuple[str, ...]
    label: Literal[0, 1] | None = None
    combination: str | None = None
    probability: float | None = None
    p_value: float | None = None
    q_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The rows of `scores.jsonl` as columns; NaN stands for null or absent."""

    ids: tuple[str, ...]
    n_tokens: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    """1 member, 0 non-member, `UNKNOWN` otherwise."""
    combination: Int[np.ndarray, " n"]
    """Index into the combinations of the summary."""
    scores: Mapping[str, Float[np.ndarray, " n"]]
    probability: Float[np.ndarray, " n"]
    p_value: Float[np.ndarray, " n"]
    q_value: Float[np.ndarray, " n"]
    flags: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory."""

    directory: Path
    summary: RunSummary
    texts: Texts


def read_run(directory: Path | str) -> Run:
    """Read one run directory.

    Raises:
      InputError: a file is missing or not JSON, or has missing or wrong entries; the
        message names the file and all of them (the first six).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory; give folders that `lt-mia audit` or "
            "`lt-mia evaluate` wrote"
        )
    path = directory / SUMMARY
    summary, problems = read_record(RunSummary, read_json(path))
    if not problems and not summary.combinations:
        problems = ["combinations is empty"]
    names = [] if problems else [each.name for each in summary.combinations]
    if len(set(names)) != len(names):
        problems = [f"names of combinations repeat: {names[:6]}"]
    refuse(path, problems, _AGAIN)
    scores = directory / SCORES
    if summary.scores_sha256 is not None and scores.is_file():
        found = sha256_file(scores)
        if found != summary.scores_sha256:
            raise InputError(
                f"{scores}: has the SHA-256 {found[:12]}, and {SUMMARY} is of one with "
                f"{summary.scores_sha256[:12]}, so they are of two runs. {_AGAIN}"
            )
    return Run(
        directory=directory,
        summary=summary,
        texts=_read_texts(scores, names, summary.primary),
    )


def _read_texts(path: Path, names: Sequence[str], primary: str) -> Texts:
    def parse(row: Row) -> tuple[ScoredText, int]:
        text, problems = read_record(ScoredText, row.values)
        refuse(row.where, problems, _AGAIN)
        home = text.combination
        if home is None and len(names) == 1:
            home = names[0]
        if home not in names:
            raise InputError(
                f"{row.where}: combination is {home!r}, expected one of {names[:6]} "
                f"as in {SUMMARY}"
            )
        return text, names.index(home)

    wanted = "rows; expected one JSON object per text"
    parsed = read_jsonl(path, parse, expected=wanted, unique=False)
    rows, homes = zip(*parsed, strict=True)
    attacks = dict.fromkeys(name for row in rows for name in row.scores)
    if primary not in attacks:
        raise InputError(
            f"{path}: no row has the score {primary!r} on which {SUMMARY} rests its "
            f"verdict; found {sorted(attacks)}"
        )
    labels = [UNKNOWN if row.label is None else row.label for row in rows]
    return Texts(
        ids=tuple(row.id for row in rows),
        n_tokens=np.array([row.n_tokens for row in rows], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        combination=np.array(homes, dtype=np.int64),
        scores={
            name: _column(row.scores.get(name) for row in rows) for name in attacks
        },
        probability=_column(row.probability for row in rows),
        p_value=_column(row.p_value for row in rows),
        q_value=_column(row.q_value for row in rows),
        flags=tuple(row.flags for row in rows),
    )


def _column(values: Iterable[float | None]) -> Float[np.ndarray, " n"]:
    return np.array([math.nan if value is None else value for value in values], float)
