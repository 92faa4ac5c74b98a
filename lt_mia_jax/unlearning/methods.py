"""Unlearning methods as values: objectives, a transformation, and what they need.

A method is a frozen dataclass: its fields are its hyper-parameters with the published
defaults, its methods say which objective acts on the forget and on the retain texts and
how the two gradients become one update. Learning rate, batches and epochs belong to
`train.UnlearnConfig`: they are the same for all.

A new method is a new dataclass here, or anywhere: `train.unlearn` takes any value with
this interface.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import optax

from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.unlearning import distributions, objectives, representation, transforms
from lt_mia_jax.unlearning.batch import Objective

Alternative = Literal["refusal", "inverted", "random"]
"""What is said instead: a refusal, an inverted fact, random tokens."""


class Term(NamedTuple):
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


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share; by itself it says nothing about the forget texts."""

    forget_weight: float = 1.0
    """Factor of the forget term (gamma)."""
    retain_weight: float = 1.0
    """Factor of the retain term (alpha); 0 does without retain texts."""

    alternative: ClassVar[Alternative | None] = None
    """Which alternative the forget batches carry."""
    cached_reference: ClassVar[bool] = False
    """Whether forget batches carry the reference's -log p, computed once."""
    weights_only: ClassVar[bool] = False
    """Whether it needs all weights as parameters, not LoRA adapters."""

    def fitted(self, model: ModelConfig) -> "Method":
        """This method with what depends on the model filled in."""
        del model
        return self

    def forget(self) -> Term | None:
        """The objective on forget texts; None reads no forget texts."""
        return Term(objectives.neg_nll)

    def retain(self) -> Term | None:
        """The objective on retain texts; None reads none."""
        return Term(objectives.nll) if self.retain_weight else None

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """Both gradients become one, in front of the optimizer."""
        if self.retain() is None or self.forget() is None:
            return optax.with_extra_args_support(optax.identity())
        return transforms.combine_forget_retain(self.forget_weight, self.retain_weight)

    def transform(
        self,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        arrays: Mapping[str, Any],
    ) -> optax.GradientTransformationExtraArgs:
        """The whole transformation, from both gradients to the update.

        Args:
          optimizer: with its learning rate and weight decay.
          schedule: the length of the run.
          arrays: what `preparation` made, such as a mask. They are read when the state
            is made and stand in it; an update is built without them.
        """
        return optax.chain(self.combine(schedule), optimizer)


@dataclass(frozen=True, kw_only=True)
class GradAscent(Method):
    """Gradient ascent on the forget texts alone; unbounded, keep it short.

    Source: Knowledge Unlearning, arXiv 2210.01504.
    """

    retain_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GradDiff(Method):
    """Gradient ascent on forget texts, descent on retain texts.

    Source: Continual Learning and Private Unlearning, arXiv 2203.12817.
    """


class _ToReference(Method):
    """Retain texts are held by the KL divergence to the model before unlearning."""

    def retain(self) -> Term | None:
        """KL to the reference."""
        return Term(distributions.kl_to_reference, data=("reference_params",))


@dataclass(frozen=True, kw_only=True)
class KlMin(_ToReference):
    """Gradient ascent on forget texts, KL to the reference on retain texts.

    Source: TOFU, arXiv 2401.06121, section 4.
    """


@dataclass(frozen=True, kw_only=True)
class Npo(Method):
    """Negative preference optimisation.

    Source: arXiv 2404.05868.
    """

    beta: float = 0.1
    """Inverse temperature; towards 0 it becomes gradient ascent."""
    cached_reference: ClassVar[bool] = True

    def forget(self) -> Term:
        """NPO."""
        return Term(objectives.npo, {"beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class SimNpo(Method):
    """NPO on the mean loss of a token, without a reference.

    Source: arXiv 2410.07163.
    """

    forget_weight: float = 0.125
    beta: float = 4.5
    """Inverse temperature."""
    delta: float = 0.0
    """Margin in nats a token."""

    def forget(self) -> Term:
        """SimNPO."""
        return Term(objectives.simnpo, {"beta": self.beta, "delta": self.delta})


@dataclass(frozen=True, kw_only=True)
class IdkDpo(Method):
    """Preference of a refusal over the answer.

    Source: TOFU, arXiv 2401.06121; DPO, arXiv 2305.18290.
    """

    beta: float = 0.1
    """Inverse temperature."""
    alternative: ClassVar[Alternative | None] = "refusal"
    cached_reference: ClassVar[bool] = True

    def forget(self) -> Term:
        """DPO."""
        return Term(objectives.dpo, {"beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class AltPo(IdkDpo):
    """Preference of a plausible other answer over the answer.

    The published method has the model write the alternatives; here they are the
    inverted facts of the data.

    Source: arXiv 2409.13474.
    """

    alternative: ClassVar[Alternative | None] = "inverted"


@dataclass(frozen=True, kw_only=True)
class IdkNll(Method):
    """Learn refusals in place of the answers (PO of TOFU).

    Source: arXiv 2401.06121.
    """

    alternative: ClassVar[Alternative | None] = "refusal"

    def forget(self) -> Term:
        """Loss of the refusal."""
        return Term(objectives.alternative_nll)


@dataclass(frozen=True, kw_only=True)
class Meow(IdkNll):
    """Learn inverted facts in place of the answers.

    Source: MEOW, arXiv 2409.11844.
    """

    alternative: ClassVar[Alternative | None] = "inverted"


@dataclass(frozen=True, kw_only=True)
class Rmu(Method):
    """The stream on forget texts is sent to a random direction, held on retain texts.

    Source: WMDP, arXiv 2403.03218.
    """

    layer: int | None = None
    """Layers that the stream has passed; None is the middle of the model."""
    steering: float = 2.0
    """Length of the vector aimed at."""
    direction: Literal["isotropic", "positive"] = "isotropic"
    """How the vector is drawn; "positive" is the published one."""

    def fitted(self, model: ModelConfig) -> "Rmu":
        """With a layer."""
        middle = max(1, model.layers // 2)
        layer = middle if self.layer is None else self.layer
        return dataclasses.replace(self, layer=layer)

    def forget(self) -> Term:
        """Distance to the control vector."""
        settings = {"layer": self.layer, "steering": self.steering}
        return Term(representation.rmu, settings, ("control",))

    def retain(self) -> Term:
        """Distance to the reference's stream."""
        settings = {"layer": self.layer}
        return Term(representation.rmu_retain, settings, ("reference_params",))


@dataclass(frozen=True, kw_only=True)
class Wga(Method):
    """Gradient ascent, weighted by the probability of each token.

    Source: arXiv 2502.19301.
    """

    beta: float = 1.0
    """Exponent of the probability."""

    def forget(self) -> Term:
        """WGA."""
        return Term(objectives.wga, {"beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class Tnpo(Method):
    """Token-wise NPO; with `alpha` also weighted by the probability (WTNPO).

    Source: arXiv 2502.19301.
    """

    beta: float = 4.0
    """Exponent of the ratio to the reference."""
    alpha: float = 0.0
    """Exponent of the probability; 1.5 is WTNPO."""
    cached_reference: ClassVar[bool] = True

    def forget(self) -> Term:
        """TNPO or WTNPO."""
        settings = {"beta": self.beta, "alpha": self.alpha}
        return Term(objectives.wtnpo, settings)


@dataclass(frozen=True, kw_only=True)
class SatImp(Method):
    """Ascent weighted by saturation and importance.

    Source: arXiv 2505.11953.
    """

    retain_weight: float = 0.1
    beta1: float = 5.0
    """Exponent of the probability."""
    beta2: float = 1.0
    """Exponent of its complement."""

    def forget(self) -> Term:
        """SatImp."""
        return Term(objectives.satimp, {"beta1": self.beta1, "beta2": self.beta2})


@dataclass(frozen=True, kw_only=True)
class Undial(Method):
    """Self-distillation with the true token's logit lowered.

    Source: arXiv 2402.10052.
    """

    retain_weight: float = 0.0
    beta: float = 10.0
    """What is taken from the logit of the target."""

    def forget(self) -> Term:
        """UNDIAL."""
        data = ("reference_params",)
        return Term(distributions.undial, {"beta": self.beta}, data)


@dataclass(frozen=True, kw_only=True)
class CeU(Method):
    """Cross-entropy to the own prediction without the true token.

    Source: arXiv 2503.01224.
    """

    retain_weight: float = 0.0
    skip: int = 1
    """First target tokens that are left out."""

    def forget(self) -> Term:
        """CE-U."""
        return Term(distributions.ce_u, {"skip": self.skip})


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

    def forget(self) -> Term:
        """Flatness."""
        return Term(distributions.pdu_flatten)

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
    alternative: ClassVar[Alternative | None] = "random"
    weights_only: ClassVar[bool] = True

    def forget(self) -> Term:
        """Loss of the random labels."""
        return Term(objectives.alternative_nll)

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
    weights_only: ClassVar[bool] = True
    transform = SalUn.transform


@dataclass(frozen=True, kw_only=True)
class GeometricUnlearning(_ToReference):
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
    """With it, the retain gradient is also followed."""

    def forget(self) -> Term:
        """SimNPO."""
        return Term(objectives.simnpo, {"beta": self.beta})

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
                return transforms.project_realised_update(inner)
        return optax.chain(project, combine, optimizer)


@dataclass(frozen=True, kw_only=True)
class Guard(GradDiff):
    """GradDiff that spares texts whose gradient the retain texts need.

    Source: GUARD, arXiv 2506.10946.
    """

    temperature: float | None = None
    """Of the weights; None is the standard deviation of the scores."""


@dataclass(frozen=True, kw_only=True)
class Sha256(GradDiff):
    """Ascent and descent on feed-forward weights of some layers, alpha adaptive.

    Source: SHA256 at SemEval-2025 Task 4, arXiv 2504.12996.
    """

    layers: tuple[int, ...] | Literal["trace", "first"] = "first"
    """Layers from 0; "first" is the first third, "trace" the third with the largest
    effect in causal tracing."""
    highest: float = 2.3
    """Largest alpha."""
    weights_only: ClassVar[bool] = True

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
    """Each so-manyth step forgets."""
    share: float = 0.5
    """Share of the forget texts that is taken, those of highest confidence."""
    weights_only: ClassVar[bool] = True

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """One or the other."""
        return transforms.alternate(
            transforms.combine_forget_retain(0.0, self.retain_weight),
            transforms.combine_forget_retain(self.forget_weight, 0.0),
            self.every,
        )


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """The gold standard: learn the retain texts, never the forget texts.

    Give it the model that was there before both.
    """

    def forget(self) -> None:
        """Nothing."""


METHODS: dict[str, Method] = {
    "grad_ascent": GradAscent(),
    "grad_diff": GradDiff(),
    "kl_min": KlMin(),
    "npo": Npo(),
    "simnpo": SimNpo(),
    "idk_dpo": IdkDpo(),
    "idk_nll": IdkNll(),
    "alt_po": AltPo(),
    "meow": Meow(),
    "rmu": Rmu(),
    "wga": Wga(),
    "tnpo": Tnpo(),
    "wtnpo": Tnpo(alpha=1.5),
    "satimp": SatImp(),
    "undial": Undial(),
    "ce_u": CeU(),
    "pdu": Pdu(),
    "salun": SalUn(),
    "sure": Sure(),
    "gu": GeometricUnlearning(),
    "gu_gradient": GeometricUnlearning(form="gradient"),
    "gu_subspace": GeometricUnlearning(form="subspace"),
    "guard": Guard(),
    "sha256": Sha256(),
    "lwf": Lwf(),
    "retrain": Retrain(),
}
"""By name, with published defaults."""
