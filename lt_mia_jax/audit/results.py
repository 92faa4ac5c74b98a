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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.attacks import calibration, controls, metrics
from lt_mia_jax.attacks.estimate import AttackSummary, DatasetVerdict
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
from lt_mia_jax.files import write_atomic, write_json
from lt_mia_jax.provenance import versions

log = logging.getLogger(__name__)

TRAINING_FREE_PRIMARY = "ez"
FEWEST_FOR_BASELINE = 10
"""Texts of each class that the text-only baseline needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; arrays have one entry a text, N in all.

    An evaluation of several feature stores is one result: its texts stand one
    combination after the other.

    Example:
      >>> import jax
      >>> from lt_mia_jax import LanguageModel, audit, load_pair, save_pretrained
      >>> from lt_mia_jax.data import train_bpe
      >>> from lt_mia_jax.executor import make_executor
      >>> from lt_mia_jax.models import gpt2_like
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> config = gpt2_like(257, width=16, layers=1, heads=2, context=32)
      >>> for seed, name in enumerate(["before", "after"]):
      ...     params = LanguageModel(config).init(jax.random.key(seed))
      ...     save_pretrained(name, config, params, tokenizer)
      >>> pair = load_pair("before", "after", make_executor())
      >>> others = [f"line {number}" for number in range(30)]
      >>> result = audit(pair, ["To be"], others, attack=None, length=32, bootstraps=20)
      >>> result.p_values.shape, bool(0 < result.p_values[0] <= 1)
      ((1,), True)
    """

    primary: str
    """The score on which p-values and verdict rest: `lt_mia`, else `ez`."""
    groups: tuple[ScoredTexts, ...]
    """The scored texts of each combination; one for `audit`."""
    combinations: tuple[CombinationSummary, ...]
    """AUC and TPRs of every score, with controls, where texts are labeled."""
    p_values: Float[np.ndarray, " N"] | None = None
    """Conformal p-values of "this text is a non-member"; None without known
    non-members, NaN for a text without a score."""
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
    """Hashes of the sets of text ids."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Of every text."""
        return tuple(text_id for group in self.groups for text_id in group.ids)

    @property
    def flags(self) -> tuple[tuple[str, ...], ...]:
        """What a reader must know about each text, such as `truncated`."""
        return tuple(tuple(flags) for group in self.groups for flags in group.flags)

    @property
    def n_tokens(self) -> Int[np.ndarray, " N"]:
        """Tokens of each text, as it was scored."""
        return np.concatenate([group.n_tokens for group in self.groups])

    @property
    def labels(self) -> Int[np.ndarray, " N"] | None:
        """1 member, 0 non-member; None when unknown."""
        known = [group.labels for group in self.groups if group.labels is not None]
        return np.concatenate(known) if len(known) == len(self.groups) else None

    @property
    def scores(self) -> dict[str, Float[np.ndarray, " N"]]:
        """By name, higher = more likely a member; NaN = no score."""
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
    """The score a verdict rests on, fixed in advance: learned attack, else EZ-MIA."""
    return LEARNED if LEARNED in scores else TRAINING_FREE_PRIMARY


def summarize_combination(
    scored: ScoredTexts, *, seed: int = 0, bootstraps: int = 1000
) -> CombinationSummary:
    """Counts, and with labels the figures of every score and of the controls."""
    labels = scored.labels
    members = nonmembers = None
    if labels is not None:
        members, nonmembers = int(np.sum(labels == 1)), int(np.sum(labels == 0))
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
            "%s: %d members and %d non-members; at least 2 of each are needed for an "
            "AUC, so no table is made",
            scored.name,
            members,
            nonmembers,
        )
        return summary

    def summarize(scores: np.ndarray, truth: np.ndarray) -> AttackSummary:
        return metrics.summarize(truth, scores, seed=seed, n_boot=bootstraps)

    primary = scored.scores[primary_score(scored.scores)]
    shuffled = controls.permuted_labels(labels, seed=seed)
    found = {PERMUTATION: summarize(primary, shuffled)}
    if scored.words is not None and min(members, nonmembers) >= FEWEST_FOR_BASELINE:
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
    must be uniform, which the Kolmogorov-Smirnov test examines.

    Args:
      primary: name of the score.
      p_values: of the suspects, as `conformal_p_values` gives them.
      nonmembers: scores of the known non-members; NaN is left out.
      seed: of the halving.
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


def write_result(
    result: AuditResult,
    directory: Path,
    *,
    kind: str,
    title: str,
    config: Mapping[str, Any],
) -> None:
    """Write `scores.jsonl` and `summary.json`.

    Args:
      result: of `audit` or `evaluate_stores`.
      directory: where.
      kind: of run, as the report page says it: `audit`, `evaluate` or `demo`.
      title: of the report page.
      config: of the run, as JSON values.
    """
    lines = [
        json.dumps(row, ensure_ascii=False, allow_nan=False) for row in _rows(result)
    ]
    write_atomic(directory / "scores.jsonl", "\n".join(lines) + "\n")
    summary = RunSummary(
        kind=kind,
        title=title,
        verdict=result.verdict,
        primary=result.primary,
        combinations=result.combinations,
        dataset=result.dataset,
        calibration=result.calibration,
        fingerprints=result.fingerprints,
        versions=versions(),
        config=config,
        command=command_line(),
        notes=result.notes,
    )
    write_json(directory / "summary.json", to_dict(summary, tagged=False))


def command_line() -> str:
    """The command as typed, quoted for a shell."""
    return shlex.join(["lt-mia", *sys.argv[1:]])


def _rows(result: AuditResult) -> Sequence[dict[str, Any]]:
    """The rows of `scores.jsonl`."""
    names = [group.name for group in result.groups for _ in group.ids]
    columns: dict[str, Any] = {
        "id": result.ids,
        "combination": names,
        "n_tokens": result.n_tokens.tolist(),
    }
    if result.labels is not None:
        columns["label"] = result.labels.tolist()
    scores = [
        {name: _number(values[i]) for name, values in group.scores.items()}
        for group in result.groups
        for i in range(len(group.ids))
    ]
    probability = result.probability
    columns["scores"] = scores
    columns["probability"] = map(
        _number, [None] * len(names) if probability is None else probability
    )
    for name, values in (("p_value", result.p_values), ("q_value", result.q_values)):
        if values is not None:
            columns[name] = map(_number, values)
    columns["flags"] = map(list, result.flags)
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _number(value: Any) -> float | None:
    """A JSON number, or null where there is none."""
    return float(value) if value is not None and math.isfinite(value) else None
