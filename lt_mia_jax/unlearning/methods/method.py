"""The interface of a method: objectives, a transformation, and their preparation.

A method is a frozen dataclass. Its fields are its hyperparameters, with their ranges
and published defaults. Its methods name the objective on the forget texts and on the
retain texts, compute what these need before the first update, and turn the two
gradients into one update. Learning rate, batches and epochs belong to
`recipe.UnlearnConfig`.

A new method is a new subclass, here or in any file: `train.unlearn` takes any value of
this class, and `lt-mia unlearn --method FILE.py:Name` takes it from a file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints

import optax

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.errors import NOT_NEGATIVE, InputError, Range, check_ranges
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.optimizer import make_optimizer
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting
from lt_mia_jax.unlearning.objectives.batch import (
    ApplyFn,
    LossAux,
    Objective,
    TextBatch,
)
from lt_mia_jax.unlearning.recipe import ForgetTexts

Alternative = Literal["refusal", "inverted", "random"]
"""The answer to learn instead: a refusal, an inverted fact, or random tokens."""


class LossTerm(NamedTuple):
    """An objective with its settings."""

    objective: Objective
    settings: Mapping[str, Any] = {}
    """Keyword arguments of the objective."""
    data: tuple[str, ...] = ()
    """Names of further keyword arguments that are arrays: those of `Prepared.data`, and
    `reference_params`, the trained tree at its start."""

    def __call__(
        self,
        params: Any,
        batch: TextBatch,
        *,
        apply_fn: ApplyFn,
        key: Key[Array, ""] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, ""], LossAux]:
        """The objective's value and `LossAux`; `data` may hold more than it needs."""
        further = {name: (data or {})[name] for name in self.data}
        return self.objective(
            params, batch, apply_fn=apply_fn, key=key, **self.settings, **further
        )


def term_of(
    objective: Objective, *fields: str, data: tuple[str, ...] = ()
) -> Callable[..., LossTerm]:
    """A `Method.forget` or `retain`: an objective that takes fields of the method.

    The fields are keyword arguments of the objective; for `data` see `LossTerm`.
    """

    def term(self: "Method") -> LossTerm:
        return LossTerm(objective, {name: getattr(self, name) for name in fields}, data)

    return term


class Schedule(NamedTuple):
    """Length of a run, in steps."""

    total: int
    epoch: int


class Recipe(NamedTuple):
    """Published settings of a run: the defaults of the command line."""

    learning_rate: float = 1e-5
    epochs: int = 10
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; by itself it is gradient difference (`GradDiff`)."""

    forget_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Factor of the forget term (gamma)."""
    retain_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Factor of the retain term (alpha). With 0, retain texts are read only if the
    method needs them otherwise."""

    alternative: ClassVar[Alternative | None] = None
    """The other answer that each forget text carries; None carries none."""
    cached_reference: ClassVar[bool] = False
    """Whether forget batches carry the reference model's -log p, computed once."""
    weights_only: ClassVar[bool] = False
    """Whether it refuses LoRA adapters."""
    recipe: ClassVar[Recipe] = Recipe()
    """Defaults of the command line; those of TOFU unless published otherwise."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range, naming every one."""
        ranges = {
            name: (getattr(self, name), kind)
            for cls in reversed(type(self).__mro__)  # a field keeps an inherited range
            for name, hint in get_type_hints(cls, include_extras=True).items()
            for kind in getattr(hint, "__metadata__", ())
            if isinstance(kind, Range)
        }
        check_ranges(type(self).__name__, **ranges)

    def fitted(self, model: ModelConfig) -> "Method":
        """This method with model-dependent settings filled in."""
        return self

    def extending(self, earlier: Intervention) -> "Method":
        """This method for a model that already carries an intervention.

        Raises:
          InputError: the method cannot extend it.
        """
        raise InputError(
            f"the model comes with an intervention, and {type(self).__name__} would "
            "lose it; take the model without it, or extend a projection by mrp"
        )

    def words(self, texts: ForgetTexts) -> Sequence[str]:
        """What the method takes from the words of the texts, or from files of its own.

        A run does not go on with others.
        """
        return ()

    def prepare(self, setting: Setting) -> Prepared:
        """Compute, once before the first update, what the method needs.

        Raises:
          InputError: the model or the texts lack what the method needs.
        """
        return Prepared()

    def forget(self) -> LossTerm | None:
        """The objective on forget texts; None reads no forget texts."""
        return LossTerm(objectives.neg_nll)

    def retain(self) -> LossTerm | None:
        """The objective on retain texts; None reads none."""
        return LossTerm(objectives.nll) if self.retain_weight else None

    @property
    def forget_every(self) -> int:
        """Every so many steps one forgets, and the next forget batch is taken."""
        return 1

    @property
    def needs_forget(self) -> bool:
        """Whether it reads forget texts, in the updates or in `prepare`."""
        return self.forget() is not None

    @property
    def needs_retain(self) -> bool:
        """Whether it reads retain texts, in the updates or in `prepare`."""
        return self.retain() is not None

    def intervention(self) -> Callable[[Any], Intervention] | None:
        """From the trained tree to an intervention; None trains weights.

        With an intervention the model is frozen, and training starts from
        `Prepared.start`. The function is part of a compiled program: it must be
        hashable, and equal for equal methods.
        """
        return None

    def optimizer(
        self, config: OptimizerConfig, total_steps: int, rate: Array | None
    ) -> optax.GradientTransformation:
        """The optimizer: AdamW, unless the method overrides it.

        `rate`, if given, replaces the config's learning rate.
        """
        return make_optimizer(config, total_steps, rate)

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """Combine the two gradients into one, in front of the optimizer."""
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
        batch) and `second_moment` of an optimizer that has one. `Prepared.arrays` are
        copied into the state by `init`; `update` is built without them.
        """
        return optax.chain(self.combine(schedule), optimizer)
