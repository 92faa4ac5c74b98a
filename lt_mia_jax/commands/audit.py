"""`lt-mia audit`: was each text in the target's fine-tuning data?"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control

from lt_mia_jax.attacks import calibration
from lt_mia_jax.attacks.learned.storage import Attack
from lt_mia_jax.audit import results
from lt_mia_jax.audit.scoring import (
    ModelPair,
    TextScores,
    choose_attack,
    load_pair,
    score_texts,
)
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.texts import Text, fingerprint, read_texts
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import InputError
from lt_mia_jax.provenance import write_run_record
from lt_mia_jax.report import write_report

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Was each text in the fine-tuning data of the target model?

    Scores every text with the learned attack and with fifteen published ones from
    the same forward pass, and writes scores.jsonl, summary.json and report.html into
    --out. Texts that carry labels give a table of AUCs; --nonmembers gives p-values
    and a verdict on the whole set.
    """

    reference: str
    """The model before fine-tuning: a Hugging Face directory or hub id."""

    target: str
    """The model under audit: a Hugging Face directory or hub id."""

    texts: Path
    """JSONL with `text` and optional `id`, `label` (1 member, 0 non-member)."""

    out: Path
    """Folder for the results."""

    attack: str = "shipped"
    """The learned attack: `shipped` with the package, trained on tiny transformers; a
    folder made by `lt-mia train`; a torch checkpoint of the reference implementation
    (FILE.pt, needs torch); `none` for the published scores alone."""

    nonmembers: Path | None = None
    """JSONL of texts known not to be in the fine-tuning data, drawn like --texts.
    They calibrate p-values and the verdict on the whole set."""

    length: int = 128
    """Tokens a text is cut to, the final end-of-text token included."""

    side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off; left for code."""

    batch_size: int = 16
    """Texts in one forward pass."""

    alpha: float = 0.01
    """Level of the verdict on the whole set."""

    bootstraps: int = 1000
    """Resamples behind each 95 % interval."""

    seed: int = 0
    """Seed of every resampling and split."""

    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Audit) -> None:
    """Score, calibrate, judge and write the three result files.

    Raises:
      InputError: a file, a model or the attack cannot be used; the message says why.
    """
    texts = read_texts(config.texts)
    nonmembers = [] if config.nonmembers is None else read_texts(config.nonmembers)
    attack = choose_attack(config.attack)
    notes: list[str] = []
    nonmembers = _without_overlap(texts, nonmembers, config, notes)
    labels = _labels(texts, config.texts, notes)
    pair = load_pair(config.reference, config.target, config.devices.make())
    write_run_record(config.out, "audit", config)

    suspects = _score(texts, pair, config, attack, "scoring texts")
    known = _score(nonmembers, pair, config, attack, "scoring non-members")
    primary = results.primary_score(suspects.scores)
    if attack is None:
        notes.append(
            "No learned attack was used: the verdict rests on EZ-MIA, the strongest "
            "training-free score in our tests."
        )

    scored = results.ScoredTexts(
        name=config.texts.stem,
        target=config.target,
        reference=config.reference,
        corpus=str(config.texts),
        ids=[text.id for text in texts],
        n_tokens=suspects.n_tokens,
        scores=suspects.scores,
        flags=suspects.flags,
        labels=labels,
        words=None if labels is None else [text.text for text in texts],
        ez_edge=suspects.ez_edge,
    )
    entry = results.combination_summary(
        scored, seed=config.seed, bootstraps=config.bootstraps
    )
    verdict = [] if labels is None else results.describe_combination(entry, primary)
    extras: dict[str, Float[np.ndarray, " N"]] = {}
    calibrated = dataset = None
    if nonmembers:
        calibrated, dataset, p_values = _judge(suspects, known, primary, config, notes)
        extras["p_value"] = p_values
        extras["q_value"] = _q_values(p_values)
        verdict = _verdict(dataset, extras["q_value"], p_values) + verdict
    elif labels is None:
        verdict.append(
            f"{len(texts)} texts were scored and ranked. Without labels and without "
            "--nonmembers no error rate can be stated, so this run accuses no text."
        )
    if any(suspects.flags):
        flagged = sum(bool(flags) for flags in suspects.flags)
        notes.append(f"{flagged} of {len(texts)} texts carry a flag (scores.jsonl).")
    notes += results.ez_notes([scored])

    results.write_scores(config.out / "scores.jsonl", [scored], extras)
    results.write_summary(
        config.out / "summary.json",
        kind="audit",
        title=f"Audit of {Path(config.target).name}",
        verdict=verdict,
        primary=primary,
        combinations=[entry],
        config=to_dict(config),
        fingerprints={
            "texts": fingerprint([text.id for text in texts]),
            **(
                {"nonmembers": fingerprint([text.id for text in nonmembers])}
                if nonmembers
                else {}
            ),
        },
        dataset=dataset,
        calibrated=calibrated,
        notes=notes,
    )
    write_report([config.out], config.out / "report.html")
    for sentence in verdict:
        log.info("%s", sentence)
    log.info("wrote %s", config.out / "report.html")


def _score(
    texts: Sequence[Text],
    pair: ModelPair,
    config: Audit,
    attack: Attack | None,
    label: str,
) -> TextScores:
    return score_texts(
        [text.text for text in texts],
        pair,
        attack=attack,
        length=config.length,
        side=config.side,
        batch_size=config.batch_size,
        label=label,
    )


def _without_overlap(
    texts: Sequence[Text], nonmembers: Sequence[Text], config: Audit, notes: list[str]
) -> list[Text]:
    """Non-members that are not among the suspects, which would bias p-values."""
    suspects = {text.text for text in texts}
    kept = [text for text in nonmembers if text.text not in suspects]
    if len(kept) < len(nonmembers):
        dropped = len(nonmembers) - len(kept)
        notes.append(f"{dropped} non-members also stand among the texts; left out.")
    if nonmembers and len(kept) < 20:
        raise InputError(
            f"{config.nonmembers}: {len(kept)} usable non-members, at least 20 are "
            "needed for p-values; add texts drawn like --texts that the target never "
            "saw"
        )
    return kept


def _labels(texts: Sequence[Text], path: Path, notes: list[str]) -> np.ndarray | None:
    given = [text.label for text in texts]
    known = sum(label is not None for label in given)
    if known == 0:
        return None
    if known < len(given):
        line = next(text.line for text in texts if text.label is None)
        raise InputError(
            f"{path}: {known} of {len(given)} texts have a label (line {line} has "
            "none); label all of them or none"
        )
    if len(set(given)) == 1:
        notes.append(f"All labels are {given[0]}: no AUC can be computed.")
    return np.array(given, dtype=np.int64)


def _judge(
    suspects: TextScores,
    known: TextScores,
    primary: str,
    config: Audit,
    notes: list[str],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, Float[np.ndarray, " N"]]:
    calibrated = results.calibration_summary(
        primary, suspects.scores[primary], known.scores[primary], seed=config.seed
    )
    usable = known.scores[primary]
    p_values = calibration.conformal_p_values(
        suspects.scores[primary], usable[~np.isnan(usable)]
    )
    scorable = int(np.sum(~np.isnan(suspects.scores["loss"])))
    if scorable < calibration.FEWEST:
        notes.append(
            f"{scorable} texts could be scored; a verdict on the whole set needs at "
            f"least {calibration.FEWEST}, so only p-values of single texts are given."
        )
        return calibrated, None, p_values
    verdict = calibration.dataset_inference(
        suspects.scores, known.scores, alpha=config.alpha, seed=config.seed
    )
    return calibrated, verdict.as_dict(), p_values


def _q_values(p_values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Benjamini-Hochberg adjusted p-values; NaN stays NaN."""
    adjusted = np.full(p_values.shape, np.nan)
    usable = ~np.isnan(p_values)
    if usable.any():
        adjusted[usable] = false_discovery_control(p_values[usable])
    return adjusted


def _verdict(
    dataset: dict[str, Any] | None,
    q_values: Float[np.ndarray, " N"],
    p_values: Float[np.ndarray, " N"],
) -> list[str]:
    usable = int(np.sum(~np.isnan(p_values)))
    found = int(np.nansum(q_values <= 0.05))
    low = int(np.nansum(p_values <= 0.05))
    sentences = [
        f"{low} of {usable} texts have a p-value of at most .05, where chance alone "
        f"gives about {0.05 * usable:.0f}; {found} remain at a false-discovery rate "
        "of 5 % (Benjamini-Hochberg).",
    ]
    if dataset is None:
        return sentences
    opening = (
        "The set of texts as a whole shows fine-tuning membership"
        if dataset["decision"] == "member"
        else "There is no evidence that the set of texts was in the fine-tuning data"
    )
    return [
        f"{opening} (dataset inference against {dataset['n_nonmembers']} known "
        f"non-members: p = {dataset['p_value']:.2g}, level {dataset['alpha']:g}).",
        *sentences,
    ]
