"""The inputs of an unlearning run beside its method: texts and recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import (
    AT_LEAST_1,
    FRACTION,
    POSITIVE,
    InputError,
    check_fields,
)
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.training.config import Linear, OptimizerConfig
from lt_mia_jax.training.config import Schedule as Rate

_LINEAR = Linear()
_RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "prepare_texts"), AT_LEAST_1),
    "sharpness": POSITIVE,
    "fisher_share": FRACTION,
}


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
    """Settings of a run that no method owns; the defaults are those of TOFU.

    Source: open-unlearning's TOFU recipe (arXiv 2506.12618).
    """

    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""
    epochs: int = 10
    """Epochs over the forget texts (over the retain texts if only these are used)."""
    batch_size: int = 32
    """Forget texts per update, and as many retain texts, drawn with replacement."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises."""
    schedule: Rate = _LINEAR
    """Learning rate after the warm-up."""
    clip_norm: float | None = None
    """Global norm to which the combined gradient is clipped."""
    lora: LoraConfig | None = None
    """Train LoRA adapters instead of all weights; its dropout is ignored."""
    prepare_texts: int = 512
    """Maximum retain texts that a method reads before the first update."""
    sharpness: float | None = None
    """If given, every forget gradient is taken at the worst point within this distance
    of the parameters, so that the forgotten is harder to relearn; one more pass."""
    fisher_share: float | None = None
    """If given, a step moves only this fraction of the weights: those with the largest
    squared gradient."""
    seed: int = 0
    """Seed of the order of texts and of all draws."""

    def __post_init__(self):
        check_fields("unlearn", self, _RANGES)
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"unlearn: warmup_epochs = {self.warmup_epochs}, expected 0 to "
                f"{self.epochs} (epochs)"
            )
        self.optimizer  # noqa: B018  checks the rates

    @property
    def optimizer(self) -> OptimizerConfig:
        """The configuration of the optimizer."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
            warmup_fraction=self.warmup_epochs / self.epochs,
        )


class ForgetTexts(NamedTuple):
    """The texts to forget, with other answers for the methods that teach them."""

    answers: EncodedAnswers
    """The texts."""
    refusals: Sequence[EncodedAnswers] = ()
    """Versions with a refusal for an answer; one is drawn each time."""
    inverted: Sequence[EncodedAnswers] = ()
    """Versions with a false answer; one is drawn each time."""
    rows: Sequence[Question] = ()
    """The texts as they were read, for methods that need words."""
    tokenizer: Any = None
    """Gives words back, for methods that sample answers."""

    def alternatives(self, kind: str | None) -> Sequence[EncodedAnswers]:
        """The versions that `Method.alternative` asks for, if they are here."""
        return {"refusal": self.refusals, "inverted": self.inverted}.get(kind or "", ())
