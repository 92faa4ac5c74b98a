"""The optimizer as values: rates, schedules, clipping."""

from dataclasses import dataclass

from lt_mia_jax.errors import BELOW_1, NOT_NEGATIVE, POSITIVE, UNIT, check_fields


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate at every step after the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from 1 after the warm-up to 0 at the end."""

    floor: float = 0.0
    """The factor never falls below this."""


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 after the warm-up to 0 at the end."""

    floor: float = 0.0
    """The factor never falls below this."""


Schedule = Constant | Linear | Cosine


_RANGES = {
    "learning_rate": POSITIVE,
    "b1": BELOW_1,
    "b2": BELOW_1,
    "eps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": POSITIVE,
    "warmup_fraction": UNIT,
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW; weight decay is decoupled and applies to every parameter."""

    learning_rate: float = 5e-5
    """Highest rate."""
    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Each step shrinks the parameters by this times the current rate."""
    clip_norm: float | None = None
    """Global norm to which gradients are clipped before the step; None leaves them."""
    schedule: Schedule = Constant()
    """Rate after the warm-up, as a factor of `learning_rate`."""
    warmup_fraction: float = 0.0
    """Share of all steps over which the rate rises linearly; the first is not 0."""

    def __post_init__(self):
        check_fields("optimizer", self, _RANGES)

    @property
    def needs_total_steps(self) -> bool:
        """Whether the rate depends on the length of the run."""
        return self.warmup_fraction > 0 or not isinstance(self.schedule, Constant)
