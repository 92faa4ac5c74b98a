"""Membership-inference attacks: scores, the learned attack, and how to judge them."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.attacks import calibration as calibration
    from lt_mia_jax.attacks import controls as controls
    from lt_mia_jax.attacks import metrics as metrics
    from lt_mia_jax.attacks import scores as scores
    from lt_mia_jax.attacks.learned import classifier as classifier
    from lt_mia_jax.attacks.learned.attack import Attack as Attack
    from lt_mia_jax.attacks.learned.attack import score_features as score_features
    from lt_mia_jax.attacks.learned.attack import score_store as score_store
    from lt_mia_jax.attacks.learned.classifier_config import (
        ClassifierConfig as ClassifierConfig,
    )
    from lt_mia_jax.attacks.learned.recipe import TrainConfig as TrainConfig
    from lt_mia_jax.attacks.learned.storage import load_attack as load_attack
    from lt_mia_jax.attacks.learned.storage import save_attack as save_attack
    from lt_mia_jax.attacks.learned.storage import shipped_attack as shipped_attack
    from lt_mia_jax.attacks.learned.train import train_attack as train_attack

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
