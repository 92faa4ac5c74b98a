"""What a finished demo lets us check: 16-bit columns, and p-values of non-members.

python -m experiments.transfer.demo_checks --demo runs/demo

For every judged combination: the attack's logits and AUC from the store's 16-bit
columns against the same texts in float32 straight from the models; and, for 20 random
halvings of its non-members, the Kolmogorov-Smirnov p-value that conformal p-values of
one half, calibrated on the other, are uniform.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import tyro

from lt_mia_jax.attacks import (
    calibration,
    load_attack,
    metrics,
    score_store,
    shipped_attack,
)
from lt_mia_jax.attacks.learned.attack import score_features
from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.data.tokenize import encode
from lt_mia_jax.features import ExtractConfig, FeatureStore, StatisticsExtractor
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.demo import judged_combinations, load_corpora

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checks:
    """Check 16-bit storage and p-values on a finished demo."""

    demo: Path = Path("runs/demo")
    """The demo's folder."""

    seeds: int = 20
    """Random halvings of the non-members."""

    seed: int = 0
    """The seed that the demo ran with."""


def main() -> None:
    """Print the figures of every judged combination."""
    config = tyro.cli(Checks)
    own = config.demo / "attack"
    attack = load_attack(own) if own.exists() else shipped_attack()
    # Only the whole demo makes a tokenizer.
    full = (config.demo / "tokenizer").exists()
    corpora = load_corpora(config.demo, full=full)
    for combination in judged_combinations(full):
        store = FeatureStore.open(config.demo / "features" / combination.name)
        stored = score_store(attack, store)
        labels = np.asarray(store.labels)

        corpus = corpora[combination.corpus]
        rows = study.split(corpus, combination, seed=config.seed)
        texts = [corpus.texts[i] for i in (*rows.members, *rows.nonmembers)]
        base = load_pretrained(config.demo / "bases" / combination.base)
        target = load_pretrained(config.demo / "targets" / combination.name)
        scorer = StatisticsExtractor(
            LanguageModel(target.config),
            target.params,
            LanguageModel(base.config),
            base.params,
            ExtractConfig(),
        )
        exact = []
        for start in range(0, len(texts), 256):
            block = texts[start : start + 256]
            found = scorer(encode(block, base.tokenizer, length=study.LENGTH))
            assert found.features is not None
            exact.append(score_features(attack, found.features, found.mask))
        direct = np.concatenate(exact)
        log.info(
            "%s (%d texts): 16-bit columns change logits by at most %.2g (median %.2g, "
            "standard deviation of logits %.2g); AUC %.5f against %.5f in float32",
            combination.name,
            len(texts),
            np.abs(stored - direct).max(),
            np.median(np.abs(stored - direct)),
            direct.std(),
            metrics.auc(labels, stored),
            metrics.auc(labels, direct),
        )
        fits = [_uniformity(stored[labels == 0], seed) for seed in range(config.seeds)]
        log.info(
            "  p-values of held-out non-members over %d seeds: %d below .01, smallest "
            "KS p %.3f, median %.3f",
            config.seeds,
            sum(p < 0.01 for p in fits),
            min(fits),
            np.median(fits),
        )


def _uniformity(scores: np.ndarray, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(scores))
    held, rest = np.split(scores[order], [len(scores) // 2])
    p_values = calibration.conformal_p_values(held, rest)
    return calibration.uniformity_p_value(p_values, len(rest))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
