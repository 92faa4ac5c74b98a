"""Making the models under study: tiny bases, and targets fine-tuned from a base."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.finetune.config import FinetuneConfig as FinetuneConfig
    from lt_mia_jax.finetune.config import LoraConfig as LoraConfig
    from lt_mia_jax.finetune.config import PretrainConfig as PretrainConfig
    from lt_mia_jax.finetune.loss import next_token_loss as next_token_loss
    from lt_mia_jax.finetune.loss import token_log_probs as token_log_probs
    from lt_mia_jax.finetune.pretraining import PretrainResult as PretrainResult
    from lt_mia_jax.finetune.pretraining import pack as pack
    from lt_mia_jax.finetune.pretraining import pretrain as pretrain
    from lt_mia_jax.finetune.target import FinetuneResult as FinetuneResult
    from lt_mia_jax.finetune.target import finetune as finetune

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
