"""Language models: configs, execution settings, and the interface `LanguageModel`."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.models.config import ModelConfig as ModelConfig
    from lt_mia_jax.models.execution import ExecutionConfig as ExecutionConfig
    from lt_mia_jax.models.language_model import LanguageModel as LanguageModel
    from lt_mia_jax.models.presets import gpt2_like as gpt2_like
    from lt_mia_jax.models.presets import griffin_like as griffin_like
    from lt_mia_jax.models.presets import llama_like as llama_like
    from lt_mia_jax.models.presets import mamba_like as mamba_like
    from lt_mia_jax.models.presets import neox_like as neox_like
    from lt_mia_jax.models.presets import rwkv_like as rwkv_like

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
