"""Models on disk in Hugging Face layout, both ways, without PyTorch."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.checkpoints.hf_config import read_config as read_config
    from lt_mia_jax.checkpoints.hf_config import write_config as write_config
    from lt_mia_jax.checkpoints.hub import BASE as BASE
    from lt_mia_jax.checkpoints.pretrained import Pretrained as Pretrained
    from lt_mia_jax.checkpoints.pretrained import load_model as load_model
    from lt_mia_jax.checkpoints.pretrained import load_pretrained as load_pretrained
    from lt_mia_jax.checkpoints.pretrained import save_pretrained as save_pretrained
    from lt_mia_jax.checkpoints.pretrained import tokenizer_of as tokenizer_of
    from lt_mia_jax.checkpoints.pretrained import weights_sha256 as weights_sha256
    from lt_mia_jax.checkpoints.tokenizer import check_agreement as check_agreement
    from lt_mia_jax.checkpoints.tokenizer import fit_vocabulary as fit_vocabulary
    from lt_mia_jax.checkpoints.tokenizer import load_tokenizer as load_tokenizer

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
