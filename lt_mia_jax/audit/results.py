"""The result of an audit as one record, its summaries and its files.

`audit`, `evaluate` and `demo` write one layout: `scores.jsonl` (a row a text) and
`summary.json` (what the report page shows).
"""

import dataclasses
import json
import logging
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.attacks import calibration, controls, metrics
from lt_mia_jax.attacks.estimate import AttackSummary, Comparison, DatasetVerdict
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.records import (
    PERMUTATION,
    TEXT_ONLY,
    Calibration,
    CombinationSummary,
    Counts,
    RunSummary,
)
from lt_mia_jax.audit.scoring import ScoredTexts
from lt_mia_jax.configs import to_dict
from lt_mia_jax.files import fingerprint, write_atomic, write_json
from lt_mia_jax.provenance import versions

log = logging.getLogger(__name__)

TRAINING_FREE = "ez"
PRIMARY = (LEARNED, TRAINING_FREE, "min_k_plus_plus", "min_k")
"""The verdict rests on the first of these that could be computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; arrays have one entry a text, N in all.

    An evaluation of several feature stores is one result: its texts stand one
    combination after the other.

    Example:
      >>> from lt_mia_jax import AuditResult
      >>> found = AuditResult(primary="ez", groups=(), combinations=())
      >>> found.ids, found.p_values
      ((), None)
    """

    primary: str
    """The score on which p-values and verdict rest, the first there is of `PRIMARY`."""
    groups: tuple[ScoredTexts, ...]
    """The scored texts of each combination; one for `audit`."""
    combinations: tuple[CombinationSummary, ...]
    """AUC and TPRs of every score, with controls, where texts are labeled."""
    comparison: Comparison | None = None
    """Whether the texts can be told from known non-members without any model."""
    p_values: Float[np.ndarray, " N"] | None = None
    """Conformal p-values of "this text is a non-member"; None without known
    non-members that are like the texts, NaN for a text without a score."""
    q_values: Float[np.ndarray, " N"] | None = None
    """The same adjusted by Benjamini-Hochberg: texts with q <= a are a selection with
    a false-discovery rate of a."""
    dataset: DatasetVerdict | None = None
    """Whether the set as a whole was trained on."""
    calibration: Calibration | None = None
    verdict: tuple[str, ...] = ()
    """The findings in sentences, the most important one first."""
    notes: tuple[str, ...] = ()
    """What limits them."""
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of the sets of texts, by ids alone and with their contents, and of the
    files of weights."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all texts."""
        return tuple(text_id for group in self.groups for text_id in group.ids)

    @property
    def flags(self) -> tuple[tuple[str, ...], ...]:
        """What a reader must know about each text, such as `truncated`."""
        return tuple(tuple(flags) for group in self.groups for flags in group.flags)

    @property
    def n_tokens(self) -> Int[np.ndarray, " N"]:
        """Number of tokens of each text, as it was scored."""
        return np.concatenate([group.n_tokens for group in self.groups])

    @property
    def labels(self) -> Int[np.ndarray, " N"] | None:
        """Labels, 1 member, 0 non-member; None when unknown."""
        known = [group.labels for group in self.groups if group.labels is not None]
        return np.concatenate(known) if len(known) == len(self.groups) else None

    @property
    def scores(self) -> dict[str, Float[np.ndarray, " N"]]:
        """Scores by name, higher = more likely a member; NaN = no score."""
        return {
            name: np.concatenate([group.scores[name] for group in self.groups])
            for name in self.groups[0].scores
        }

    @property
    def probability(self) -> Float[np.ndarray, " N"] | None:
        """The learned attack's probability of membership; None without that attack.

        It holds for as many members as non-members, as the attack was trained.
        """
        logits = self.scores.get(LEARNED)
        if logits is None:
            return None
        decayed = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1, decayed) / (1 + decayed)


def primary_score(scores: Mapping[str, Any]) -> str:
    """The score a verdict rests on, fixed in advance: see `PRIMARY`."""
    return next(name for name in PRIMARY if name in scores)


def summarize_combination(
    scored: ScoredTexts, *, seed: int = 0, bootstraps: int = 1000
) -> CombinationSummary:
    """Counts, and with labels the figures of every score and of the controls."""
    labels = scored.labels
    members, nonmembers = (
        None if labels is None else int(np.sum(labels == label)) for label in (1, 0)
    )
    summary = CombinationSummary(
        name=scored.name,
        target=scored.target,
        reference=scored.reference,
        corpus=scored.corpus,
        unseen=scored.unseen,
        counts=Counts(
            texts=len(scored.ids),
            members=members,
            nonmembers=nonmembers,
            flagged=sum(bool(flags) for flags in scored.flags),
        ),
        loss_gap_nats=None,
        attacks={},
        controls={},
    )
    if labels is None or members is None or nonmembers is None:
        return summary
    if min(members, nonmembers) < 2:
        log.warning(
            f"{scored.name}: {members} members and {nonmembers} non-members; at least "
            "2 of each are needed for an AUC, so no table is made"
        )
        return summary

    def summarize(scores: np.ndarray, truth: np.ndarray) -> AttackSummary:
        return metrics.summarize(truth, scores, seed=seed, n_boot=bootstraps)

    primary = scored.scores[primary_score(scored.scores)]
    shuffled = controls.permuted_labels(labels, seed=seed)
    found = {PERMUTATION: summarize(primary, shuffled)}
    if scored.words is not None and min(members, nonmembers) >= controls.FEWEST:
        baseline = controls.text_only_baseline(scored.words, labels, seed=seed)
        found[TEXT_ONLY] = summarize(baseline, labels)
    return dataclasses.replace(
        summary,
        loss_gap_nats=metrics.loss_gap(labels, -scored.scores["loss"]),
        attacks={k: summarize(v, labels) for k, v in scored.scores.items()},
        controls=found,
    )


def calibrate(
    primary: str,
    p_values: Float[np.ndarray, " N"],
    nonmembers: Float[np.ndarray, " M"],
    *,
    seed: int = 0,
) -> Calibration | None:
    """A check of conformal p-values on half of the non-members; None below 2 of them.

    A random half of the non-members is scored against the other half: those p-values
    must be uniform, which the Kolmogorov-Smirnov test examines. `p_values` belong to
    the suspects, `nonmembers` are scores, of which NaN is left out.
    """
    usable = nonmembers[~np.isnan(nonmembers)]
    if len(usable) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(usable))
    held, rest = np.split(usable[order], [len(usable) // 2])
    checked = calibration.conformal_p_values(held, rest)
    return Calibration(
        primary=primary,
        n_calibration=len(usable),
        p_values=tuple(p_values[np.isfinite(p_values)].tolist()),
        nonmember_p_values=tuple(checked[np.isfinite(checked)].tolist()),
        ks_p=_number(calibration.uniformity_p_value(checked, len(rest))),
    )


def clear_result(directory: Path) -> None:
    """Remove the summary and the page of an earlier result, before one takes its place.

    A run that is killed then leaves no figures beside the scores of another.
    """
    for name in ("report.html", "summary.json"):
        (directory / name).unlink(missing_ok=True)


def write_result(
    result: AuditResult,
    directory: Path,
    *,
    kind: str,
    title: str,
    config: Mapping[str, Any],
) -> None:
    """Write `scores.jsonl` and then `summary.json`, which names its SHA-256.

    The report page shows the title, the `kind` of run (`audit`, `evaluate` or `demo`)
    and its `config`, which are JSON values.
    """
    lines = [
        json.dumps(row, ensure_ascii=False, allow_nan=False) for row in _rows(result)
    ]
    scores = "\n".join(lines) + "\n"
    write_atomic(directory / "scores.jsonl", scores)
    summary = RunSummary(
        kind=kind,
        title=title,
        verdict=result.verdict,
        primary=result.primary,
        combinations=result.combinations,
        comparison=result.comparison,
        dataset=result.dataset,
        calibration=result.calibration,
        fingerprints=result.fingerprints,
        versions=versions(),
        config=config,
        command=command_line(),
        notes=result.notes,
        scores_sha256=fingerprint(scores),
    )
    write_json(directory / "summary.json", to_dict(summary, tagged=False))


def command_line() -> str:
    """The command as typed, quoted for a shell."""
    return shlex.join(["lt-mia", *sys.argv[1:]])


def _rows(result: AuditResult) -> Iterator[dict[str, Any]]:
    """The rows of `scores.jsonl`."""
    probability, labels = result.probability, result.labels
    places = [(group, i) for group in result.groups for i in range(len(group.ids))]
    for n, (group, i) in enumerate(places):
        row: dict[str, Any] = {"id": group.ids[i], "combination": group.name}
        row["n_tokens"] = int(group.n_tokens[i])
        if labels is not None:
            row["label"] = int(labels[n])
        row["scores"] = {name: _number(x[i]) for name, x in group.scores.items()}
        row["probability"] = None if probability is None else _number(probability[n])
        for name in ("p_value", "q_value"):
            values = getattr(result, f"{name}s")
            if values is not None:
                row[name] = _number(values[n])
        row["flags"] = list(group.flags[i])
        yield row


def _number(value: Any) -> float | None:
    """A JSON number, or null where there is none."""
    return float(value) if math.isfinite(value) else None
