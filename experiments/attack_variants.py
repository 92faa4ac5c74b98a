"""Variants of the learned attack, trained alike and judged on the same texts.

python experiments/attack_variants.py \
    --train runs/transfer/combinations/*/features \
    --judge runs/real_model/combinations/*/features

What is to be explained is why an attack does worse on a model of another kind: each
variant changes one thing. `_own` scores with inputs standardised on the judged texts,
which needs no labels. A row says the AUC, the difference to EZ-MIA with a 95 % interval
over texts, and the AUC on validation texts of the training combinations.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transfer_plan
from launch import command

from lt_mia_jax.attacks import Attack, score_store, train_attack
from lt_mia_jax.attacks.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.commands import evaluate
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.store import FeatureStore


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


class LogProbabilities:
    """A store whose pair of the true token holds log-probabilities, not raw logits.

    They follow from the losses: `a - b` is the reference's loss minus the target's.
    The lists of likely tokens stay as they are; these variants do not see them.
    """

    def __init__(self, store: FeatureStore) -> None:
        """A view of it."""
        self.meta: Mapping[str, Any] = store.meta
        self.name, self.n = store.name, store.n
        self.ids, self.labels, self.split = store.ids, store.labels, store.split
        self._store = store

    def features(self, rows: Any) -> tuple[Any, Any]:
        """Features and mask of some texts."""
        features, mask = self._store.features(rows)
        layout: FeatureLayout = self._store.layout
        target, reference = layout.loss.start, layout.loss.start + 1
        gain = features[..., reference] - features[..., target]
        pair = layout.truth.start
        features[..., pair] = np.minimum(0, gain)
        features[..., pair + 1] = np.minimum(0, -gain)
        return features, mask


View = Callable[[FeatureStore], Any]


def as_it_is(store: FeatureStore) -> FeatureStore:
    """No view."""
    return store


VARIANTS: dict[str, tuple[View, dict[str, Any]]] = {
    "usual": (as_it_is, {}),
    "log_probabilities": (LogProbabilities, {}),
    "no_text": (as_it_is, {"blocks": ("truth", "loss")}),
    "log_probabilities_no_text": (LogProbabilities, {"blocks": ("truth", "loss")}),
    "mean_mlp": (as_it_is, {"architecture": "mean_mlp"}),
}


def standardised_on(attack: Attack, view: Any) -> Attack:
    """The attack with the moments of other texts for its inputs."""
    features, mask = view.features(np.arange(view.n))
    seen = features[np.asarray(mask, bool)][:, attack.config.columns]
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
        name: evaluate.score_published(store, np.arange(store.n)).scores["ez"]
        for name, store in judge.items()
    }
    print("| variant | seed | validation | judged on | AUC | less EZ-MIA |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in config.variants or VARIANTS:
        view, changes = VARIANTS[variant]
        shape: ClassifierConfig = dataclasses.replace(small.classifier, **changes)
        for seed in config.seeds:
            result = train_attack(
                [view(store) for store in train],
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
                labels, seen = np.asarray(store.labels, np.int64), view(store)
                own = standardised_on(result.attack, seen)
                for label, attack in (
                    (variant, result.attack),
                    (f"{variant}_own", own),
                ):
                    scores = score_store(attack, seen)
                    less = difference(labels, scores, published[name], config.resamples)
                    print(
                        f"| {label} | {seed} | {result.best_auc:.4f} | {name} | "
                        f"{auc(labels, scores):.4f} | {less} |",
                        flush=True,
                    )


if __name__ == "__main__":
    sys.exit(command(AttackVariants, run, __doc__))
