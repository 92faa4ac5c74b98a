"""What a run of unlearning is told beside its method: the texts and the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune.lora import LoraConfig
from lt_mia_jax.training.optimizer import Linear, OptimizerConfig
from lt_mia_jax.training.optimizer import Schedule as Rate

_LINEAR = Linear()


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
    """Everything but the method; the defaults are those of TOFU.

    Source: open-unlearning's TOFU recipe (arXiv 2506.12618).
    """

    learning_rate: float = 1e-5
    """Highest rate of AdamW."""
    epochs: int = 10
    """Passes over the forget texts (over the retain texts when only these are used)."""
    batch_size: int = 32
    """Forget texts in an update, and as many retain texts, drawn with replacement."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_epochs: float = 1.0
    """Epochs over which the rate rises."""
    schedule: Rate = _LINEAR
    """Rate after the warm-up."""
    clip_norm: float | None = None
    """Global norm to which the combined gradient is clipped."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; without dropout, whatever it says."""
    prepare_texts: int = 512
    """Retain texts, evenly from all, that a method may look at before it starts."""
    seed: int = 0
    """Seed of the order of texts and of all draws."""

    def __post_init__(self):
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name in ("epochs", "batch_size", "prepare_texts")
            if getattr(self, name) < 1
        ]
        if wrong:
            raise InputError(f"unlearn: {', '.join(wrong)}, expected at least 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"unlearn: warmup_epochs = {self.warmup_epochs}, expected 0 to "
                f"{self.epochs} (epochs)"
            )
        self.optimizer  # noqa: B018  checks the rates

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer that this recipe means."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
            warmup_fraction=self.warmup_epochs / self.epochs,
        )


class ForgetTexts(NamedTuple):
    """What is to be forgotten."""

    answers: EncodedAnswers
    """The texts."""
    refusals: Sequence[EncodedAnswers] = ()
    """The same prompts with answers that give nothing away; one is drawn each time."""
    inverted: Sequence[EncodedAnswers] = ()
    """The same prompts with false answers; one is drawn each time."""
