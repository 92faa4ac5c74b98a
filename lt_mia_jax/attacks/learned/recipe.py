"""How the learned attack is trained, as data; light, so that --help stays quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lt_mia_jax.errors import (
    AT_LEAST_1,
    BELOW_1,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    InputError,
    check_fields,
)

_RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "slices"), AT_LEAST_1),
    **dict.fromkeys(("learning_rate", "clip_norm"), POSITIVE),
    **dict.fromkeys(("weight_decay", "focal_gamma", "pairwise_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("cache_gib", "save_seconds"), NOT_NEGATIVE),
    "label_smoothing": BELOW_1,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training recipe; the defaults are the paper's."""

    epochs: Annotated[int, COUNT] = 80
    """Passes over the training rows."""
    batch_size: int = 16_384
    """Texts per update; cut to the number of training texts."""
    slices: int = 1
    """Parts of a batch computed one after the other to save memory; the same update,
    draws of dropout aside."""
    learning_rate: float = 9.88e-4
    """Highest rate of AdamW."""
    weight_decay: float = 0.028
    """Decoupled weight decay, on all parameters."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None leaves it."""
    schedule: Literal["cosine", "linear", "none"] = "cosine"
    """Factor after the warm-up; `none` is constant, without warm-up."""
    warmup_epochs: float = 10.0
    """Epochs over which the rate rises from 0; must be below `epochs`."""
    loss: Literal["bce", "focal"] = "bce"
    """Loss per text."""
    label_smoothing: float = 0.02
    """Smoothing of `bce`; `focal` has none."""
    focal_gamma: float = 2.0
    """Exponent of `focal`."""
    pairwise_weight: float = 0.0
    """Weight of the pairwise hinge added to the loss; the paper's option is 0.1."""
    balance: Literal["uniform", "plain"] = "uniform"
    """`uniform` draws combinations equally often, with replacement; `plain` visits
    every row once an epoch."""
    selection: Literal["pooled", "mean"] = "pooled"
    """Best epoch by AUC over all validation rows, or by the mean over combinations."""
    seed: Annotated[int, SEED] = 0
    """Seed of initial weights, batch order and dropout."""
    cache_gib: float = 4.0
    """Features are kept in memory when they fit in this many GiB, else read again."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Precision in which features are kept and moved; the same whether kept or not."""
    save_seconds: float = 60.0
    """Least seconds between checkpoints; 0 saves after every update."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, naming every field."""
        check_fields("training recipe", self, _RANGES)
        if self.schedule != "none" and not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(
                f"training recipe: warmup_epochs = {self.warmup_epochs:g}, expected 0 "
                f"or more, below the {self.epochs} epochs"
            )
        if self.pairwise_weight and self.slices > 1:
            raise InputError(
                f"pairwise_weight={self.pairwise_weight} compares all rows of a batch, "
                f"which slices={self.slices} keeps apart; leave one at its default"
            )
