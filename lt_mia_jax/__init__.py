"""Memorization auditing for language models: detect, forget, verify."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports
from lt_mia_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from lt_mia_jax import attacks as attacks
    from lt_mia_jax import audit as audit
    from lt_mia_jax.attacks import scores as scores
    from lt_mia_jax.attacks.learned.storage import load_attack as load_attack
    from lt_mia_jax.audit.results import AuditResult as AuditResult
    from lt_mia_jax.audit.scoring import ModelPair as ModelPair
    from lt_mia_jax.audit.scoring import load_pair as load_pair
    from lt_mia_jax.audit.served import StatisticsPair as StatisticsPair
    from lt_mia_jax.audit.served import load_statistics as load_statistics
    from lt_mia_jax.checkpoints.pretrained import load_pretrained as load_pretrained
    from lt_mia_jax.checkpoints.pretrained import save_pretrained as save_pretrained
    from lt_mia_jax.data.corpora import load_corpus as load_corpus
    from lt_mia_jax.data.texts import read_texts as read_texts
    from lt_mia_jax.data.tokenize import encode as encode
    from lt_mia_jax.errors import InputError as InputError
    from lt_mia_jax.features.layout import FeatureLayout as FeatureLayout
    from lt_mia_jax.features.lt_mia import lt_mia_features as lt_mia_features
    from lt_mia_jax.features.statistics import TokenStatistics as TokenStatistics
    from lt_mia_jax.features.statistics import token_statistics as token_statistics
    from lt_mia_jax.features.store import FeatureStore as FeatureStore
    from lt_mia_jax.models.config import ModelConfig as ModelConfig
    from lt_mia_jax.models.language_model import LanguageModel as LanguageModel

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
