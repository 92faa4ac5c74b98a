"""Run directories as the report reads them: `summary.json` and `scores.jsonl`."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lt_mia_jax.arrays import Float, Int
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json
from lt_mia_jax.report.schema import (
    Fields,
    ListOf,
    MapOf,
    Maybe,
    OneOf,
    Schema,
    problems,
)

UNKNOWN = -1
"""The label of a text whose membership is not known."""

_INTERVAL = Fields(
    {"value": Maybe("number"), "low": Maybe("number"), "high": Maybe("number")}
)
_SUMMARY = Fields(
    {
        "auc": Maybe(_INTERVAL),
        "tpr": MapOf(
            Fields(
                {
                    "conservative": Maybe(_INTERVAL),
                    "interpolated": Maybe(_INTERVAL),
                    "refused": "truth",
                }
            )
        ),
        "n_members": "count",
        "n_nonmembers": "count",
        "n_missing": "count",
    }
)
_COMBINATION = Fields(
    {
        "name": "text",
        "target": "text",
        "reference": "text",
        "corpus": "text",
        "unseen": Maybe("truth"),
        "counts": Fields(
            {
                "texts": "count",
                "members": Maybe("count"),
                "nonmembers": Maybe("count"),
                "flagged": "count",
            }
        ),
        "loss_gap_nats": Maybe(_INTERVAL),
        "attacks": MapOf(_SUMMARY),
        "controls": MapOf(_SUMMARY),
    }
)
RUN: Schema = Fields(
    {
        "kind": "text",
        "title": "text",
        "verdict": ListOf("text"),
        "primary": "text",
        "combinations": ListOf(_COMBINATION, empty=False),
        "dataset": Maybe(
            Fields(
                {
                    "p_value": Maybe("number"),
                    "decision": "text",
                    "alpha": "number",
                    "n_suspect": "count",
                    "n_nonmembers": "count",
                    "method": "text",
                    "effect": Maybe(MapOf("anything")),
                }
            )
        ),
        "calibration": Maybe(
            Fields(
                {
                    "primary": "text",
                    "n_calibration": "count",
                    "p_values": ListOf("number"),
                    "nonmember_p_values": ListOf("number"),
                    "ks_p": Maybe("number"),
                }
            )
        ),
        "fingerprints": MapOf("anything"),
        "versions": MapOf("anything"),
        "config": MapOf("anything"),
        "command": "text",
        "notes": ListOf("text"),
    }
)
ROW: Schema = Fields(
    {
        "id": "text",
        "n_tokens": "count",
        "scores": MapOf(Maybe("number")),
        "flags": ListOf("text"),
    },
    {
        "label": Maybe(OneOf((0, 1))),
        "combination": Maybe("text"),
        "probability": Maybe("number"),
        "p_value": Maybe("number"),
        "q_value": Maybe("number"),
    },
)


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
    """One validated run directory."""

    directory: Path
    summary: Mapping[str, Any]
    texts: Texts


def read_run(directory: Path | str) -> Run:
    """Read and validate one run directory.

    Raises:
      InputError: a file is missing or not JSON, or breaks the contract; the message
        names the file and everything that is missing or wrong (the first six).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory; give folders that `lt-mia audit` or "
            "`lt-mia evaluate` wrote"
        )
    path = directory / "summary.json"
    summary = read_json(path)
    _raise_if(path, problems(summary, RUN))
    return Run(
        directory=directory,
        summary=summary,
        texts=_read_texts(directory / "scores.jsonl", summary),
    )


def _read_texts(path: Path, summary: Mapping[str, Any]) -> Texts:
    names = [each["name"] for each in summary["combinations"]]
    if len(set(names)) != len(names):
        raise InputError(f"{path.parent / 'summary.json'}: combination names repeat")
    place = {name: index for index, name in enumerate(names)}
    rows, homes = [], []
    for where, row in _rows(path):
        _raise_if(where, problems(row, ROW))
        home = row.get("combination")
        if home is None and len(names) == 1:
            home = names[0]
        if home not in place:
            raise InputError(
                f"{where}: combination is {home!r}, expected one of {names[:6]} as in "
                "summary.json"
            )
        rows.append(row)
        homes.append(place[home])
    if not rows:
        raise InputError(f"{path}: no rows; expected one JSON object per text")
    attacks = dict.fromkeys(name for row in rows for name in row["scores"])
    primary = summary["primary"]
    if primary not in attacks:
        raise InputError(
            f"{path}: no row has the score {primary!r} on which summary.json rests "
            f"its verdict; found {sorted(attacks)}"
        )
    return Texts(
        ids=tuple(row["id"] for row in rows),
        n_tokens=np.array([row["n_tokens"] for row in rows], dtype=np.int64),
        labels=np.array(
            [UNKNOWN if row.get("label") is None else row["label"] for row in rows],
            dtype=np.int64,
        ),
        combination=np.array(homes, dtype=np.int64),
        scores={
            name: _column(row["scores"].get(name) for row in rows) for name in attacks
        },
        probability=_column(row.get("probability") for row in rows),
        p_value=_column(row.get("p_value") for row in rows),
        q_value=_column(row.get("q_value") for row in rows),
        flags=tuple(tuple(row["flags"]) for row in rows),
    )


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{where}: not valid JSON ({error})") from error
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; a finished run writes it next to summary.json"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _column(values: Iterator[float | None]) -> Float[np.ndarray, " n"]:
    return np.array([math.nan if value is None else value for value in values], float)


def _raise_if(where: Path | str, found: Iterator[str]) -> None:
    shown = list(islice(found, 7))
    if shown:
        more = "; and more" if len(shown) == 7 else ""
        raise InputError(
            f"{where}: {'; '.join(shown[:6])}{more}. Run the command again that wrote "
            "it"
        )
