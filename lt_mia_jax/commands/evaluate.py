"""`lt-mia evaluate`: a learned attack and every baseline on feature stores."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from lt_mia_jax.attacks import score_store
from lt_mia_jax.attacks import scores as formulas
from lt_mia_jax.attacks.learned.storage import Attack
from lt_mia_jax.audit import results
from lt_mia_jax.audit.scoring import choose_attack
from lt_mia_jax.configs import to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.provenance import write_run_record
from lt_mia_jax.report import write_report

log = logging.getLogger(__name__)

BLOCK = 512
"""Texts whose statistics are in memory at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score feature stores with a learned attack and every published score.

    Writes scores.jsonl, summary.json and report.html. Texts that the attack was
    trained or selected on are left out, whatever the model they were scored with.
    """

    features: tuple[Path, ...]
    """Feature stores made by `lt-mia extract`."""

    out: Path
    """Folder for the results."""

    attack: str = "shipped"
    """The learned attack: `shipped` with the package, or a folder made by `lt-mia
    train`."""

    split: Literal["unseen", "test"] = "unseen"
    """unseen: every text the attack never saw. test: the rows marked test only."""

    bootstraps: int = 1000
    """Resamples behind each 95 % interval."""

    seed: int = 0
    """Seed of every resampling."""


def run(config: Evaluate) -> None:
    """Evaluate and write the result files.

    Raises:
      InputError: the attack or a store is broken, or they do not fit each other.
    """
    attack = choose_attack(config.attack)
    if attack is None:
        raise InputError(
            "--attack none: a learned attack is what evaluate judges; give a folder, "
            "or leave the flag out for the one of the package"
        )
    stores = [FeatureStore.open(path) for path in config.features]
    write_run_record(config.out, "evaluate", config)
    evaluate_stores(
        attack,
        stores,
        config.out,
        kind="evaluate",
        title=f"{Path(config.attack).name} on {len(stores)} combinations",
        split=config.split,
        bootstraps=config.bootstraps,
        seed=config.seed,
        config=to_dict(config),
    )
    log.info("wrote %s", config.out / "report.html")


def evaluate_stores(
    attack: Attack,
    stores: Sequence[FeatureStore],
    out: Path,
    *,
    kind: str,
    title: str,
    split: Literal["unseen", "test"],
    bootstraps: int,
    seed: int,
    config: dict,
    notes: Sequence[str] = (),
) -> list[dict]:
    """Score stores, write the three result files, return the combination entries."""
    scored = [score_combination(attack, store, split) for store in stores]
    entries = [
        results.combination_summary(group, seed=seed, bootstraps=bootstraps)
        for group in scored
    ]
    primary = results.LEARNED
    verdict = results.describe_together(entries, primary) + [
        sentence
        for entry in sorted(entries, key=lambda entry: not entry["unseen"])
        for sentence in results.describe_combination(entry, primary)
    ]
    first = next((g for g in scored if g.unseen), scored[0])
    labels = first.labels
    assert labels is not None
    calibrated = results.calibration_summary(
        primary,
        first.scores[primary][labels == 1],
        first.scores[primary][labels == 0],
        seed=seed,
    )
    results.write_scores(out / "scores.jsonl", scored, {})
    results.write_summary(
        out / "summary.json",
        kind=kind,
        title=title,
        verdict=verdict,
        primary=primary,
        combinations=entries,
        config=config,
        fingerprints={store.name: store.fingerprint for store in stores},
        calibrated=calibrated,
        notes=[
            "Evaluated on texts that the attack was neither trained nor selected on.",
            "The text-only baseline sees the bag of token ids that the models scored.",
            *results.ez_notes(scored),
            *notes,
        ],
    )
    write_report([out], out / "report.html")
    return entries


def score_combination(
    attack: Attack, store: FeatureStore, split: Literal["unseen", "test"]
) -> results.ScoredTexts:
    """All scores of the rows that the attack may be judged on."""
    rows = np.array(
        [
            row
            for row, text_id in enumerate(store.ids)
            if text_id not in attack.text_ids
            and (split == "unseen" or store.split[row] == "test")
        ],
        dtype=np.int64,
    )
    if not len(rows):
        raise InputError(
            f"{store.path}: all {store.n} texts were used to train this attack, so "
            "none is left to judge it; extract other texts or another seed"
        )
    published = score_published(store, rows)
    learned = score_store(attack, store, rows)
    seen = attack.card.get("combinations", [])
    return dataclasses.replace(
        published,
        scores={results.LEARNED: learned, **published.scores},
        unseen=not any(
            store.meta["reference"] == other["reference"]
            or store.meta["corpus"] == other["corpus"]
            for other in seen
        ),
    )


def score_published(
    store: FeatureStore, rows: Int[np.ndarray, " B"]
) -> results.ScoredTexts:
    """All scores of some rows but the learned attack's."""
    found: dict[str, list[np.ndarray]] = {}
    words, n_tokens, edge = [], [], 0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        statistics = store.statistics(block)
        values = formulas.all_scores(
            statistics,
            zlib_bytes=store.zlib_bytes[block],
            lower_loss=store.lower_loss[block],
        )
        edge += formulas.count_ez_edge_cases(statistics)
        for name, column in values.items():
            found.setdefault(name, []).append(np.asarray(column))
        for ids, valid in zip(statistics.input_ids, statistics.valid, strict=True):
            words.append(" ".join(f"t{token}" for token in ids[valid]))
            n_tokens.append(int(valid.sum()) + 1)
    return results.ScoredTexts(
        name=store.name,
        target=store.meta["target"],
        reference=store.meta["reference"],
        corpus=store.meta["corpus"],
        ids=[store.ids[row] for row in rows],
        n_tokens=np.array(n_tokens),
        scores={name: np.concatenate(parts) for name, parts in found.items()},
        flags=[store.flags[row] for row in rows],
        labels=np.asarray(store.labels)[rows],
        words=words,
        ez_edge=edge,
    )
