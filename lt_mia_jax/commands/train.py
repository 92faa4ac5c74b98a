"""`lt-mia train`: the learned attack from feature stores."""

import dataclasses
import logging
from pathlib import Path

from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import InputError
from lt_mia_jax.outputs import Output, Writing, WritingFlags

log = logging.getLogger(__name__)

WRITES = Output(
    (
        *("classifier.safetensors", "classifier.json", "card.json", "manifest.json"),
        *("metrics.jsonl", "state", "run.json", "config.json"),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train the learned attack on feature stores made by `lt-mia extract`.

    The more different models and corpora, the better it transfers. Rows marked train
    are fitted, rows marked validation choose the epoch, rows marked test are left for
    `lt-mia evaluate`. The run continues where it was interrupted.
    """

    features: tuple[Path, ...]
    """Feature stores, one a combination of model and corpus."""
    out: Path
    """Folder of the attack: weights, configuration, card."""
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    """Architecture of the attack."""
    recipe: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How it is trained."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Train) -> None:
    """Train and save the attack."""
    from lt_mia_jax.attacks.learned.train import train_attack
    from lt_mia_jax.features.store import FeatureStore

    stores = [FeatureStore.open(path) for path in config.features]
    for path, store in zip(config.features, stores, strict=True):
        if (store.k, store.length) != (stores[0].k, stores[0].length):
            raise InputError(
                f"{path} has k = {store.k} and length {store.length}, "
                f"{config.features[0]} has k = {stores[0].k} and length "
                f"{stores[0].length}; extract them alike"
            )
    result = train_attack(
        stores,
        config.classifier,
        config.recipe,
        config.out,
        executor=config.devices.make(),
    )
    log.info(
        "wrote %s (best epoch %d, validation AUC %.3f)",
        config.out,
        result.best_epoch,
        result.best_auc,
    )
