"""What a method is: objectives, a transformation, and what they need.

A method is a frozen dataclass: its fields are its hyper-parameters with the published
defaults, its methods say which objective acts on the forget and on the retain texts and
how the two gradients become one update. Learning rate, batches and epochs belong to
`train.UnlearnConfig`: they are the same for all.

A new method is a new dataclass, here or anywhere: `train.unlearn` takes any value with
this interface.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import optax

from lt_mia_jax.arrays import Array
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.training.optimizer import OptimizerConfig, make_optimizer
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.methods.limits import NOT_NEGATIVE, Limit, check_limits
from lt_mia_jax.unlearning.objectives.batch import Objective

Alternative = Literal["refusal", "inverted", "random"]
"""What is said instead: a refusal, an inverted fact, random tokens."""


class LossTerm(NamedTuple):
    """An objective with its settings."""

    objective: Objective
    settings: Mapping[str, Any] = {}
    """Keyword arguments of the objective."""
    data: tuple[str, ...] = ()
    """Further keyword arguments that are arrays, by their names in `Prepared.data`."""


class Schedule(NamedTuple):
    """Lengths that a transformation may depend on, in steps."""

    total: int
    epoch: int


class Recipe(NamedTuple):
    """Published settings of a run, for whoever has no better ones."""

    learning_rate: float = 1e-5
    epochs: int = 10
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share; by itself it says nothing about the forget texts."""

    forget_weight: float = 1.0
    """Factor of the forget term (gamma)."""
    retain_weight: float = 1.0
    """Factor of the retain term (alpha); where it is 0, no retain texts are read unless
    the transformation needs them."""

    alternative: ClassVar[Alternative | None] = None
    """Which alternative the forget batches carry."""
    cached_reference: ClassVar[bool] = False
    """Whether forget batches carry the reference's -log p, computed once."""
    weights_only: ClassVar[bool] = False
    """Whether it needs all weights as parameters, not LoRA adapters."""
    recipe: ClassVar[Recipe] = Recipe()
    """Defaults of the command line; the usual ones are those of TOFU."""
    limits: ClassVar[Mapping[str, Limit]] = {
        "forget_weight": NOT_NEGATIVE,
        "retain_weight": NOT_NEGATIVE,
    }
    """Ranges of its fields, beside those of its base classes."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range, naming every one."""
        check_limits(self)

    def fitted(self, model: ModelConfig) -> "Method":
        """This method with what depends on the model filled in."""
        del model
        return self

    def forget(self) -> LossTerm | None:
        """The objective on forget texts; None reads no forget texts."""
        return LossTerm(objectives.neg_nll)

    def retain(self) -> LossTerm | None:
        """The objective on retain texts; None reads none."""
        return LossTerm(objectives.nll) if self.retain_weight else None

    @property
    def forget_every(self) -> int:
        """Steps for which a batch of forget texts stays; the last one reads it."""
        return 1

    @property
    def needs_forget(self) -> bool:
        """Whether it reads texts to forget, in a step or before the first one."""
        return self.forget() is not None

    @property
    def needs_retain(self) -> bool:
        """Whether it reads texts to keep."""
        return self.retain() is not None

    def intervention(self) -> Callable[[Any], Intervention] | None:
        """How what is trained becomes an intervention; None trains weights.

        With it the model is frozen, and `fitting.start` makes the numbers that are
        trained. The value is part of a compiled program: hashable, and equal for equal
        methods.
        """
        return None

    def optimizer(
        self, config: OptimizerConfig, total_steps: int, rate: Array | None
    ) -> optax.GradientTransformation:
        """The optimizer, AdamW unless the method wants another one.

        `rate`, if given, stands for the config's learning rate.
        """
        return make_optimizer(config, total_steps, rate)

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """Both gradients become one, in front of the optimizer."""
        if self.retain() is None or self.forget() is None:
            weight = self.retain_weight if self.retain() else self.forget_weight
            return optax.with_extra_args_support(optax.scale(weight))
        return transforms.combine_forget_retain(self.forget_weight, self.retain_weight)

    def transform(
        self,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        arrays: Mapping[str, Any],
    ) -> optax.GradientTransformationExtraArgs:
        """The whole transformation, from both gradients to the update.

        Its extra arguments are `retain_grads`, `forget_value` and `retain_value` where
        there are such sides, `grad_fn` (parameters to the forget gradient of the same
        batch) and `second_moment` of an optimizer that has one.

        Args:
          optimizer: with its learning rate and weight decay.
          schedule: the length of the run.
          arrays: what `preparation` made, such as a mask. They are read when the state
            is made and stand in it; an update is built without them.
        """
        return optax.chain(self.combine(schedule), optimizer)
