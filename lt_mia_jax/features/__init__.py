"""From two logit tensors to per-token statistics, features and their store."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.features.layout import FeatureLayout as FeatureLayout
    from lt_mia_jax.features.lt_mia import assemble as assemble
    from lt_mia_jax.features.lt_mia import lt_mia_features as lt_mia_features
    from lt_mia_jax.features.program import ExtractConfig as ExtractConfig
    from lt_mia_jax.features.scorer import StatisticsExtractor as StatisticsExtractor
    from lt_mia_jax.features.statistics import TokenStatistics as TokenStatistics
    from lt_mia_jax.features.statistics import token_statistics as token_statistics
    from lt_mia_jax.features.store import FeatureStore as FeatureStore
    from lt_mia_jax.features.writer import StoreWriter as StoreWriter
    from lt_mia_jax.features.writer import TextTable as TextTable

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
