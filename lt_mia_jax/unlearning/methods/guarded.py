"""Methods that guard what is kept: projections, multipliers, choices of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Key
from lt_mia_jax.errors import AT_LEAST_1, FRACTION, NOT_NEGATIVE, POSITIVE
from lt_mia_jax.training.fisher import diagonal_fisher
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.importance.attribution import (
    attribution_scores,
    forgetting_confidence,
    guard_weights,
)
from lt_mia_jax.unlearning.methods.ascent import TO_REFERENCE, GradDiff
from lt_mia_jax.unlearning.methods.method import LossTerm, Method, Schedule, term_of
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting, per_example_loss
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch


@dataclass(frozen=True, kw_only=True)
class Pdu(Method):
    """Flatten predictions, with the retain loss held below a bound by a multiplier.

    Source: arXiv 2506.05314.
    """

    tolerance: float = 0.3
    """Bound on the retain loss; give one above the loss of the model at the start."""
    initial: Annotated[float, NOT_NEGATIVE] = 100.0
    """Initial multiplier; `retain_weight` is not used."""
    step_size: Annotated[float, NOT_NEGATIVE] = 5.0
    """Step size of the multiplier."""
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 5.0
    """Epochs before the multiplier moves."""
    forget = term_of(objectives.pdu_flatten)
    retain = term_of(objectives.nll)

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
class GeometricUnlearning(Method):
    """SimNPO with updates that keep the retain loss unchanged to first order.

    Source: GU, arXiv 2511.17100.
    """

    form: Literal["gradient", "subspace", "update"] = "update"
    """What is projected: "gradient", the forget gradient off the current retain
    gradient; "subspace", off the last `size` retain gradients; "update", the step of
    the optimizer, the only form with a guarantee under Adam."""
    size: Annotated[int, AT_LEAST_1] = 8
    """Number of retain gradients kept by "subspace"."""
    beta: Annotated[float, POSITIVE] = 4.5
    """Inverse temperature of SimNPO."""
    retain_weight: float = 0.0
    """Weight of descent on the retain loss; retain texts are read even if 0."""
    forget = term_of(objectives.simnpo, "beta")

    def retain(self) -> LossTerm:
        """KL to the reference: the loss to keep."""
        return TO_REFERENCE

    def transform(
        self,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        arrays: Mapping[str, Any],
    ) -> optax.GradientTransformationExtraArgs:
        """With the projection in front of the optimizer or around it."""
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
    """GradDiff with less weight on texts whose gradient is needed for retaining.

    Source: GUARD, arXiv 2506.10946.
    """

    retain_weight: Annotated[float, POSITIVE] = 1.0
    temperature: Annotated[float | None, POSITIVE] = None
    """Temperature of the text weights; None is the standard deviation of the scores."""

    def prepare(self, setting: Setting) -> Prepared:
        """The weight of each forget text."""
        direction = setting.retain_gradient()
        scores = setting.per_text(partial(_attributed, setting.forward_fn, direction))
        weights = guard_weights(scores, self.temperature)
        return Prepared(row_weight=np.asarray(weights, np.float32))


@dataclass(frozen=True, kw_only=True)
class GracefulForgetting(GradDiff):
    """Train on the retain texts; every `every`-th step is an ascent step instead.

    Only the forget texts that disturb the retained knowledge most are used.

    Source: Graceful Forgetting (Learning With Forgetting, LWF), arXiv 2505.19715, as we
    read it. Not LwF, Learning *without* Forgetting, arXiv 1606.09282.
    """

    retain_weight: Annotated[float, POSITIVE] = 1.0
    every: Annotated[int, AT_LEAST_1] = 5
    """Every `every`-th step is a forget step; the forget set is seen `epochs / every`
    times."""
    share: Annotated[float, FRACTION] = 0.5
    """Fraction of the forget texts that is used: those of highest confidence."""
    weights_only = True

    @property
    def forget_every(self) -> int:
        """The last of `every` steps forgets."""
        return self.every

    def prepare(self, setting: Setting) -> Prepared:
        """Weight 1 for the texts of highest forgetting confidence, 0 for the others."""
        loss = partial(per_example_loss, setting.forward_fn)
        fisher = diagonal_fisher(
            loss, setting.trained, setting.retain(), row_weight=lambda b: b.weight
        )
        confidence = partial(_confidence, setting.forward_fn, setting.key, fisher)
        scores = setting.per_text(confidence)
        taken = max(1, round(self.share * len(scores)))
        weight = np.zeros(len(scores), np.float32)
        weight[np.argsort(-np.asarray(scores), kind="stable")[:taken]] = 1.0
        return Prepared(row_weight=weight)

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """Retain steps, and every so often a forget step."""
        return transforms.alternate(
            transforms.combine_forget_retain(0.0, self.retain_weight),
            transforms.combine_forget_retain(self.forget_weight, 0.0),
            self.every,
        )


@jax.jit
def _attributed(
    apply_fn: ApplyFn, direction: Any, params: Any, batch: TextBatch
) -> Array:
    loss = partial(per_example_loss, apply_fn)
    return attribution_scores(loss, params, batch, direction)


@jax.jit
def _confidence(
    apply_fn: ApplyFn,
    key: Key[Array, ""],
    fisher: Any,
    params: Any,
    batch: TextBatch,
) -> Array:
    # The task's optimum is the model itself.
    loss = partial(per_example_loss, apply_fn)
    return forgetting_confidence(
        loss, params, batch, optimum=params, fisher=fisher, rate=1.0, key=key
    )
