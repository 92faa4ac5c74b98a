"""Methods whose transformation guards what is kept: masks, projections, multipliers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import optax

from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.methods.ascent import TO_REFERENCE, GradDiff
from lt_mia_jax.unlearning.methods.limits import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    PERCENTILE,
    POSITIVE,
    SHARE,
    Limit,
)
from lt_mia_jax.unlearning.methods.method import (
    Alternative,
    LossTerm,
    Method,
    Recipe,
    Schedule,
)
from lt_mia_jax.unlearning.methods.preference import Npo
from lt_mia_jax.unlearning.objectives import distributions


@dataclass(frozen=True, kw_only=True)
class Pdu(Method):
    """Flat predictions, with the retain loss below a bound by a dual variable.

    Source: arXiv 2506.05314.
    """

    tolerance: float = 0.3
    """Retain loss to stay below, above that of the model at the start."""
    initial: float = 100.0
    """Multiplier at the start; `retain_weight` is not used."""
    step_size: float = 5.0
    """Of the multiplier."""
    warmup_epochs: float = 5.0
    """Epochs before the multiplier moves."""
    limits: ClassVar[Mapping[str, Limit]] = {
        "initial": NOT_NEGATIVE,
        "step_size": NOT_NEGATIVE,
        "warmup_epochs": NOT_NEGATIVE,
    }

    def forget(self) -> LossTerm:
        """Flatness."""
        return LossTerm(distributions.pdu_flatten)

    def retain(self) -> LossTerm:
        """The bounded loss."""
        return LossTerm(objectives.nll)

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """Primal-dual combination."""
        return transforms.dual_combine(
            tolerance=self.tolerance,
            step_size=self.step_size,
            initial=self.initial,
            warmup=round(self.warmup_epochs * schedule.epoch),
            forget_weight=self.forget_weight,
        )


@dataclass(frozen=True, kw_only=True)
class SalUn(Method):
    """Random labels, learned by the weights that matter most to the forget texts.

    Source: arXiv 2310.12508.
    """

    share: float = 0.5
    """Share of the weights that may move."""
    limits: ClassVar[Mapping[str, Limit]] = {"share": SHARE}
    alternative: ClassVar[Alternative | None] = "random"
    weights_only: ClassVar[bool] = True

    def forget(self) -> LossTerm:
        """Loss of the random labels."""
        return LossTerm(objectives.alternative_nll)

    def transform(
        self,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        arrays: Mapping[str, Any],
    ) -> optax.GradientTransformationExtraArgs:
        """Under the saliency mask."""
        inner = optax.chain(self.combine(schedule), optimizer)
        return transforms.saliency_masked(inner, arrays.get("mask"))


@dataclass(frozen=True, kw_only=True)
class Sure(Npo):
    """NPO by the output neurons that matter most to the forget texts.

    Source: arXiv 2410.16454.
    """

    percentile: float = 90.0
    """Neurons whose gradient norm reaches this percentile may move."""
    limits: ClassVar[Mapping[str, Limit]] = {"percentile": PERCENTILE}
    weights_only: ClassVar[bool] = True
    transform = SalUn.transform


@dataclass(frozen=True, kw_only=True)
class GeometricUnlearning(Method):
    """SimNPO whose update leaves the retain loss as it is, to first order.

    Source: GU, arXiv 2511.17100.
    """

    form: Literal["gradient", "subspace", "update"] = "update"
    """What is projected: the gradient off the present retain gradient; off the last
    `size` retain gradients; or the finished step of the optimizer, the only form with a
    guarantee under Adam."""
    size: int = 8
    """Retain gradients remembered by "subspace"."""
    beta: float = 4.5
    """Inverse temperature of SimNPO."""
    retain_weight: float = 0.0
    """With it, the retain gradient is also followed; retain texts are always read."""
    limits: ClassVar[Mapping[str, Limit]] = {"size": AT_LEAST_1, "beta": POSITIVE}

    def forget(self) -> LossTerm:
        """SimNPO."""
        return LossTerm(objectives.simnpo, {"beta": self.beta})

    def retain(self) -> LossTerm:
        """KL to the reference, whose gradient is spared."""
        return TO_REFERENCE

    def transform(
        self,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        arrays: Mapping[str, Any],
    ) -> optax.GradientTransformationExtraArgs:
        """With the projection at its place."""
        combine = transforms.combine_forget_retain(
            self.forget_weight, self.retain_weight
        )
        match self.form:
            case "gradient":
                project = transforms.project_against()
            case "subspace":
                project = transforms.retain_subspace_projection(size=self.size)
            case "update":
                inner = optax.chain(combine, optimizer)
                return transforms.project_realized_update(inner)
        return optax.chain(project, combine, optimizer)


@dataclass(frozen=True, kw_only=True)
class Guard(GradDiff):
    """GradDiff that spares texts whose gradient the retain texts need.

    Source: GUARD, arXiv 2506.10946.
    """

    temperature: float | None = None
    """Of the weights; None is the standard deviation of the scores."""
    limits: ClassVar[Mapping[str, Limit]] = {
        "temperature": POSITIVE,
        "retain_weight": POSITIVE,
    }


@dataclass(frozen=True, kw_only=True)
class Sha256(GradDiff):
    """Ascent and descent on feed-forward weights of some layers, alpha adaptive.

    Source: SHA256 at SemEval-2025 Task 4, arXiv 2504.12996.
    """

    layers: tuple[int, ...] | Literal["trace", "first"] = "first"
    """Layers from 0; "first" is the first third, "trace" the third with the largest
    effect in causal tracing."""
    highest: float = 2.3
    """Largest alpha; `retain_weight` is not used."""
    weights_only: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(learning_rate=1.5e-5, epochs=8)
    limits: ClassVar[Mapping[str, Limit]] = {
        "highest": Limit("at least 1.2, the smallest alpha", lambda x: x >= 1.2)
    }

    def retain(self) -> LossTerm:
        """The loss that alpha follows."""
        return LossTerm(objectives.nll)

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """With the adaptive weight."""
        return transforms.adaptive_combine(
            steps_per_epoch=schedule.epoch,
            highest=self.highest,
            forget_weight=self.forget_weight,
        )

    transform = SalUn.transform


@dataclass(frozen=True, kw_only=True)
class Lwf(GradDiff):
    """Learning on retain texts with an ascent step now and then.

    The ascent takes the texts that would disturb the retained knowledge most.

    Source: Learning with forgetting, arXiv 2505.19715, as we read it.
    """

    every: int = 5
    """Each so-manyth step forgets, so the forget texts are passed over epochs / every
    times."""
    share: float = 0.5
    """Share of the forget texts that is taken, those of highest confidence."""
    weights_only: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, Limit]] = {
        "every": AT_LEAST_1,
        "share": SHARE,
        "retain_weight": POSITIVE,
    }

    @property
    def forget_every(self) -> int:
        """Of each `every` steps the last one forgets."""
        return self.every

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """One or the other."""
        return transforms.alternate(
            transforms.combine_forget_retain(0.0, self.retain_weight),
            transforms.combine_forget_retain(self.forget_weight, 0.0),
            self.every,
        )
