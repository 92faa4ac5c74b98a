"""What a scored run says: rows, tables and the verdict in words.

`audit`, `evaluate` and `demo` all end here, so their files have one layout:
`scores.jsonl` (a row a text) and `summary.json` (what the report page shows).
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
from lt_mia_jax.attacks.scores.table import LEARNED, describe
from lt_mia_jax.configs import to_dict
from lt_mia_jax.files import write_atomic, write_json
from lt_mia_jax.provenance import versions

log = logging.getLogger(__name__)

TRAINING_FREE_PRIMARY = "ez"
SHIFTED = 0.6
"""A text-only baseline above this AUC says that the split itself is separable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredTexts:
    """Scores of the texts of one combination; all sequences have one length N."""

    name: str
    target: str
    reference: str
    corpus: str
    ids: Sequence[str]
    n_tokens: Int[np.ndarray, " N"]
    scores: Mapping[str, Float[np.ndarray, " N"]]
    """By attack name, higher = more likely a member; NaN = no score."""
    flags: Sequence[Sequence[str]]
    labels: Int[np.ndarray, " N"] | None = None
    """1 member, 0 non-member; None when unknown."""
    words: Sequence[str] | None = None
    """What the text-only baseline may see; None leaves that control out."""
    unseen: bool | None = None
    """Whether the learned attack saw neither this model variant nor this corpus."""
    ez_edge: int = 0
    """Texts to which EZ-MIA gives 0 for want of evidence."""


def primary_score(scores: Mapping[str, Any]) -> str:
    """The score a verdict rests on, fixed in advance: learned attack, else EZ-MIA."""
    return LEARNED if LEARNED in scores else TRAINING_FREE_PRIMARY


def ez_notes(scored: Sequence[ScoredTexts]) -> list[str]:
    """A sentence on texts without evidence for EZ-MIA, when there are any."""
    found, texts = (sum(g.ez_edge for g in scored), sum(len(g.ids) for g in scored))
    if not found:
        return []
    return [
        f"EZ-MIA gives 0, its lowest score, to {found} of {texts} texts: the target "
        "errs on fewer than two of their tokens, or is nowhere worse than the "
        "reference where it errs. Its authors' code does so."
    ]


def combination_summary(
    scored: ScoredTexts, *, seed: int, bootstraps: int
) -> dict[str, Any]:
    """One entry of `combinations` in `summary.json`, with controls when labeled."""
    labels = scored.labels
    entry: dict[str, Any] = {
        "name": scored.name,
        "target": scored.target,
        "reference": scored.reference,
        "corpus": scored.corpus,
        "unseen": scored.unseen,
        "counts": {
            "texts": len(scored.ids),
            "members": None if labels is None else int(np.sum(labels == 1)),
            "nonmembers": None if labels is None else int(np.sum(labels == 0)),
            "flagged": sum(bool(flags) for flags in scored.flags),
        },
        "loss_gap_nats": None,
        "attacks": {},
        "controls": {},
    }
    if labels is None:
        return entry
    if min(entry["counts"]["members"], entry["counts"]["nonmembers"]) < 2:
        log.warning(
            "%s: %d members and %d non-members; at least 2 of each are needed for an "
            "AUC, so no table is made",
            scored.name,
            entry["counts"]["members"],
            entry["counts"]["nonmembers"],
        )
        return entry

    def summarize(scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        found = metrics.summarize(truth, scores, seed=seed, n_boot=bootstraps)
        return to_dict(found, tagged=False)

    entry["attacks"] = {k: summarize(v, labels) for k, v in scored.scores.items()}
    gap = metrics.loss_gap(labels, -scored.scores["loss"])
    entry["loss_gap_nats"] = gap and to_dict(gap, tagged=False)
    primary = scored.scores[primary_score(scored.scores)]
    shuffled = controls.permuted_labels(labels, seed=seed)
    entry["controls"]["permutation"] = summarize(primary, shuffled)
    smallest = min(entry["counts"]["members"], entry["counts"]["nonmembers"])
    if scored.words is not None and smallest >= 10:
        blind = controls.blind_baseline(scored.words, labels, seed=seed)
        entry["controls"]["blind"] = summarize(blind, labels)
    return entry


def calibration_summary(
    primary: str,
    suspects: Float[np.ndarray, " N"],
    nonmembers: Float[np.ndarray, " M"],
    *,
    seed: int,
) -> dict[str, Any] | None:
    """Conformal p-values of the suspects and a check on half of the non-members.

    The check scores a random half of the non-members against the other half: those
    p-values must be uniform, which the Kolmogorov-Smirnov test examines.
    """
    usable = nonmembers[~np.isnan(nonmembers)]
    if len(usable) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(usable))
    held, rest = np.split(usable[order], [len(usable) // 2])
    checked = calibration.conformal_p_values(held, rest)
    return {
        "primary": primary,
        "n_calibration": len(usable),
        "p_values": _numbers(calibration.conformal_p_values(suspects, usable)),
        "nonmember_p_values": _numbers(checked),
        "ks_p": _number(calibration.uniformity_p_value(checked, len(rest))),
    }


def write_scores(
    path: Path,
    scored: Sequence[ScoredTexts],
    extras: Mapping[str, Float[np.ndarray, " N"]],
) -> None:
    """Write `scores.jsonl`.

    Args:
      path: the file.
      scored: combinations, in order.
      extras: further columns (for example `p_value`), one value a row over all
        combinations in order.
    """
    lines = []
    row_number = 0
    for group in scored:
        logits = group.scores.get(LEARNED)
        for i, text_id in enumerate(group.ids):
            row: dict[str, Any] = {
                "id": text_id,
                "combination": group.name,
                "n_tokens": int(group.n_tokens[i]),
            }
            if group.labels is not None:
                row["label"] = int(group.labels[i])
            row["scores"] = {k: _number(v[i]) for k, v in group.scores.items()}
            row["probability"] = None if logits is None else _sigmoid(logits[i])
            for column, values in extras.items():
                row[column] = _number(values[row_number])
            row["flags"] = list(group.flags[i])
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
            row_number += 1
    write_atomic(path, "\n".join(lines) + "\n")


def write_summary(
    path: Path,
    *,
    kind: str,
    title: str,
    verdict: Sequence[str],
    primary: str,
    combinations: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    dataset: Mapping[str, Any] | None = None,
    calibrated: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `summary.json`, from which the report page is made."""
    summary = {
        "kind": kind,
        "title": title,
        "verdict": list(verdict),
        "primary": primary,
        "combinations": list(combinations),
        "dataset": dataset,
        "calibration": calibrated,
        "fingerprints": dict(fingerprints),
        "versions": versions(),
        "config": dict(config),
        "command": command_line(),
        "notes": list(notes),
    }
    write_json(path, summary)


def command_line() -> str:
    """The command as typed, quoted for a shell."""
    return shlex.join(["lt-mia", *sys.argv[1:]])


def describe_together(entries: Sequence[Mapping[str, Any]], primary: str) -> list[str]:
    """One opening sentence over several labeled combinations."""
    values = [
        entry["attacks"][primary]["auc"]["value"]
        for entry in entries
        if primary in entry["attacks"]
    ]
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return []
    fresh = all(entry["unseen"] for entry in entries)
    where = "whose model and corpus it never saw" if fresh else "judged here"
    return [
        f"Over the {len(values)} combinations {where}, {_title(primary)} has an AUC "
        f"between {min(values):.3f} and {max(values):.3f}, mean "
        f"{sum(values) / len(values):.3f}."
    ]


def describe_combination(entry: Mapping[str, Any], primary: str) -> list[str]:
    """Sentences on one labeled combination: result, rivals, controls."""
    attacks, found = entry["attacks"], entry["controls"]
    counts, gap = entry["counts"], entry["loss_gap_nats"]
    if not attacks:
        return [
            f"{entry['name']}: {counts['members']} members and "
            f"{counts['nonmembers']} non-members are too few for a table; at least 2 "
            "of each are needed."
        ]
    best = attacks[primary]["auc"]
    sentences = [
        f"On {entry['name']} ({counts['members']} members, {counts['nonmembers']} "
        f"non-members) {_title(primary)} has an AUC of {_interval(best)}; the "
        f"member/non-member loss gap is {_interval(gap)} nats."
    ]
    rivals = {k: v["auc"]["value"] for k, v in attacks.items() if k != primary}
    rivals = {k: v for k, v in rivals.items() if v is not None}
    if rivals:
        rival = max(rivals, key=lambda name: rivals[name])
        sentences.append(
            f"The best other score, {_title(rival)}, reaches "
            f"{_interval(attacks[rival]['auc'])}."
        )
    if found.get("blind"):
        blind = found["blind"]["auc"]
        if (blind["value"] or 0) > SHIFTED:
            tail = (
                "above .6: the split can be told apart without any model, so read "
                "every figure against it"
            )
        elif (blind["low"] or 0) > 0.5:
            tail = "a little above chance: read the other figures against it"
        else:
            tail = "so the texts alone do not give membership away"
        sentences.append(f"A text-only baseline reaches {_interval(blind)}, {tail}.")
    control = found["permutation"]["auc"]
    inside = control["low"] is not None and control["low"] <= 0.5 <= control["high"]
    sentences.append(
        f"With permuted labels the AUC is {_interval(control)}"
        + (", as it must be." if inside else ", which should contain 0.5: suspicious.")
    )
    return sentences


def _interval(estimate: Mapping[str, float | None] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "not available"
    text = f"{estimate['value']:.3f}"
    if estimate["low"] is not None and estimate["high"] is not None:
        text += f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return text


def _title(name: str) -> str:
    return "the learned attack" if name == LEARNED else describe(name).label


def _number(value: Any) -> float | None:
    """A JSON number, or null where there is none."""
    return float(value) if value is not None and math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float]:
    return [float(v) for v in values if math.isfinite(v)]


def _sigmoid(logit: float) -> float | None:
    if not math.isfinite(logit):
        return None
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
