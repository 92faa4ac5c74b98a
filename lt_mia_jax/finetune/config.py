"""Recipes of training as values; nothing here needs an array library."""

from dataclasses import dataclass

from lt_mia_jax.errors import AT_LEAST_1, BELOW_1, POSITIVE, between, check_fields
from lt_mia_jax.training.config import Cosine, OptimizerConfig

ADAMW = OptimizerConfig(
    learning_rate=1e-3,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
    schedule=Cosine(floor=0.1),
    warmup_fraction=0.05,
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How to train a small model from random parameters."""

    steps: int = 1000
    """Updates; the data are repeated as often as needed."""
    batch_size: int = 32
    """Rows in one step, over all devices."""
    optimizer: OptimizerConfig = ADAMW
    """AdamW with a cosine schedule and clipping."""
    seed: int = 0
    """Seed of the order of rows, of dropout and of parameters made here."""

    def __post_init__(self):
        check_fields("pretrain", self, {"steps": AT_LEAST_1, "batch_size": AT_LEAST_1})


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which kernels get adapters, and of what size. Everything else is frozen."""

    rank: int = 16
    """Inner size of the adapters."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.05
    """Rate at which each token's inputs of an adapter are dropped in training."""
    targets: tuple[str, ...] = ()
    """Globs over parameter paths, such as "*/mixer/query/kernel"; each must match.
    Empty takes every kernel of every layer, in all families."""

    def __post_init__(self):
        ranges = {"rank": between(1, 2**13), "alpha": POSITIVE, "dropout": BELOW_1}
        check_fields("lora", self, ranges)

    @property
    def scale(self) -> float:
        """Factor on the product of the adapters."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The recipe of the paper: AdamW at a constant rate, no warm-up, no clipping.

    Source: Learning the Signature of Memorization in Autoregressive Language Models,
    arXiv 2604.03199 (settings of the reference implementation).
    """

    learning_rate: float = 5e-5
    """Constant rate."""
    epochs: int = 3
    """Passes over the texts; the one with the lowest validation loss is kept."""
    batch_size: int = 16
    """Texts in one step, over all devices."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on all parameters."""
    lora: LoraConfig | None = None
    """Train adapters instead of all parameters."""
    seed: int = 0
    """Seed of the order of texts, of dropout and of the adapters."""

    def __post_init__(self):
        check_fields("finetune", self, {"epochs": AT_LEAST_1, "batch_size": AT_LEAST_1})
        self.optimizer  # noqa: B018  checks the rates

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer that this recipe means."""
        return OptimizerConfig(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )
