"""Command-line flags of low-rank adapters; light, so that --help stays quick."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from lt_mia_jax.errors import BELOW_1, POSITIVE, RANK

if TYPE_CHECKING:
    from lt_mia_jax.finetune.config import LoraConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """Low-rank adapters, merged into the weights at the end."""

    rank: Annotated[int, RANK] = 0
    """Rank of the adapters; 0 trains all parameters."""
    alpha: Annotated[float, POSITIVE] = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Globs of kernels to adapt, such as "*/mixer/query/kernel"; empty takes every
    kernel of every layer."""

    @property
    def config(self) -> "LoraConfig | None":
        """The adapters, or None for rank 0."""
        from lt_mia_jax.finetune.config import LoraConfig

        if not self.rank:
            return None
        flags = {"dropout": 0.0, **vars(self)}
        return LoraConfig(**flags)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(LowRank):
    """Low-rank adapters, merged into the weights at the end."""

    dropout: Annotated[float, BELOW_1] = 0.05
    """Dropout of each token's input of an adapter."""
