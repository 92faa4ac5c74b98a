"""Memorization auditing for language models: detect, forget, verify."""

from lt_mia_jax import attacks as attacks
from lt_mia_jax.attacks import load_attack as load_attack
from lt_mia_jax.attacks import scores as scores
from lt_mia_jax.checkpoints import load_pretrained as load_pretrained
from lt_mia_jax.checkpoints import save_pretrained as save_pretrained
from lt_mia_jax.data import encode as encode
from lt_mia_jax.data import load_corpus as load_corpus
from lt_mia_jax.data import read_texts as read_texts
from lt_mia_jax.errors import InputError as InputError
from lt_mia_jax.features import FeatureLayout as FeatureLayout
from lt_mia_jax.features import FeatureStore as FeatureStore
from lt_mia_jax.features import TokenStatistics as TokenStatistics
from lt_mia_jax.features import lt_mia_features as lt_mia_features
from lt_mia_jax.features import token_statistics as token_statistics
from lt_mia_jax.models import LanguageModel as LanguageModel
from lt_mia_jax.models import ModelConfig as ModelConfig
from lt_mia_jax.version import __version__ as __version__
