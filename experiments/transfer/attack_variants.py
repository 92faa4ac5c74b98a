"""Variants of the learned attack, trained alike and judged on the same texts.

python -m experiments.transfer.attack_variants \
    --train runs/transfer/combinations/*/features \
    --judge runs/real_model/combinations/*/features

What is to be explained is why an attack does worse on a model of another kind: each
variant changes one thing. `_own` scores with inputs standardized on the judged texts,
which needs no labels. A row says the AUC, the difference to EZ-MIA with a 95 % interval
over texts, and the AUC on validation texts of the training combinations.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transfer import plan as transfer_plan
from lt_mia_jax.attacks import Attack, score_store, train_attack
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.audit.scoring import score_published
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.study.launch import command


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackVariants:
    """Train every variant and judge it."""

    train: tuple[Path, ...]
    """Stores to learn from: a `features` folder of each combination."""

    judge: tuple[Path, ...]
    """Stores to judge on, of other texts."""

    out: Path = Path("runs/variants")
    """One folder a variant and seed; a stopped command goes on where it was."""

    variants: tuple[str, ...] = ()
    """Which ones; all by default."""

    seeds: tuple[int, ...] = (0,)
    """Of training."""

    resamples: int = 500
    """Behind each interval."""


RAW: dict[str, Any] = {"log_probabilities": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "raw_logits": RAW,
    "no_text": {"blocks": ("truth", "loss")},
    "raw_logits_no_text": {"blocks": ("truth", "loss"), **RAW},
    "mean_mlp": {"architecture": "mean_mlp"},
    "raw_logits_mean_mlp": {"architecture": "mean_mlp", **RAW},
}
"""What each changes of the study's attack."""


def standardized_on(attack: Attack, store: FeatureStore) -> Attack:
    """The attack with the moments of other texts for its inputs."""
    features, mask = store.features(np.arange(store.n))
    seen = attack.config.select(features[np.asarray(mask, bool)])
    moments = {
        "input_mean": seen.mean(0, dtype=np.float64).astype(np.float32),
        "input_scale": np.maximum(seen.std(0, dtype=np.float64), 1e-3).astype("f4"),
    }
    return Attack(attack.config, {**attack.params, **moments}, attack.card)


def difference(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, resamples: int
) -> str:
    """AUC of two scores' difference, with its interval over texts."""
    rng, found = np.random.default_rng(0), []
    for _ in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        if 0 < labels[rows].sum() < len(rows):
            own, other = (auc(labels[rows], x[rows]) for x in (ours, theirs))
            found.append(own - other)
    low, high = np.quantile(found, (0.025, 0.975))
    value = auc(labels, ours) - auc(labels, theirs)
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def run(config: AttackVariants) -> None:
    """Train what is not trained yet, and print a row for each.

    Raises:
      InputError: a variant does not exist, or a store cannot be used.
    """
    unknown = set(config.variants) - set(VARIANTS)
    if unknown:
        raise InputError(
            f"--variants {' '.join(sorted(unknown))}: expected {' '.join(VARIANTS)}"
        )
    train = [FeatureStore.open(path) for path in config.train]
    judge = {path.parent.name: FeatureStore.open(path) for path in config.judge}
    small = transfer_plan.tiny().small
    assert small is not None
    published = {
        name: score_published(store, np.arange(store.n)).scores["ez"]
        for name, store in judge.items()
    }
    print("| variant | seed | validation | judged on | AUC | less EZ-MIA |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in config.variants or VARIANTS:
        shape: ClassifierConfig = dataclasses.replace(
            small.classifier, **VARIANTS[variant]
        )
        for seed in config.seeds:
            result = train_attack(
                train,
                shape,
                small.trained(seed=seed).recipe,
                config.out / f"{variant}-{seed}",
            )
            for name, store in judge.items():
                used = result.attack.text_ids & set(store.ids)
                if used:
                    raise InputError(
                        f"{name}: {len(used)} of its texts trained the attack"
                    )
                labels = np.asarray(store.labels, np.int64)
                own = standardized_on(result.attack, store)
                for label, attack in (
                    (variant, result.attack),
                    (f"{variant}_own", own),
                ):
                    scores = score_store(attack, store)
                    less = difference(labels, scores, published[name], config.resamples)
                    print(
                        f"| {label} | {seed} | {result.best_auc:.4f} | {name} | "
                        f"{auc(labels, scores):.4f} | {less} |",
                        flush=True,
                    )


if __name__ == "__main__":
    sys.exit(command(AttackVariants, run, __doc__))
