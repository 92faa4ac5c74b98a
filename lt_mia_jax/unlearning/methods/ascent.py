"""Gradient ascent on the forget texts, plain or weighted; misdirection; retraining."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lt_mia_jax.errors import NOT_NEGATIVE, POSITIVE, InputError
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.method import LossTerm, Method, Recipe, term_of
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting


@dataclass(frozen=True, kw_only=True)
class GradAscent(Method):
    """Gradient ascent on the forget texts alone. Unbounded: keep the run short.

    Source: Knowledge Unlearning, arXiv 2210.01504.
    """

    retain_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GradDiff(Method):
    """Gradient ascent on forget texts, descent on retain texts.

    Source: Continual Learning and Private Unlearning, arXiv 2203.12817.
    """


TO_REFERENCE = LossTerm(objectives.kl_to_reference, data=("reference_params",))
"""KL divergence on the retain texts from the model before unlearning."""


@dataclass(frozen=True, kw_only=True)
class KlMin(Method):
    """Gradient ascent on forget texts, KL to the reference on retain texts.

    Source: TOFU, arXiv 2401.06121, section 4.
    """

    def retain(self) -> LossTerm | None:
        """KL to the reference."""
        return TO_REFERENCE if self.retain_weight else None


@dataclass(frozen=True, kw_only=True)
class Rmu(Method):
    """Steer the residual stream of forget texts to a random vector (misdirection).

    On retain texts the stream is held at that of the model before unlearning.

    Source: WMDP, arXiv 2403.03218; `adaptive`: arXiv 2408.06223.
    """

    layer: int | None = None
    """Layer whose output is steered, from 1; None is the middle of the model."""
    steering: Annotated[float, POSITIVE] = 2.0
    """Length of the target vector."""
    adaptive: bool = False
    """Scale the target by the norm of the reference's stream at each token."""
    direction: Literal["isotropic", "positive"] = "isotropic"
    """Distribution of the target's direction; "positive" is the published one."""

    def fitted(self, model: ModelConfig) -> "Rmu":
        """With a layer."""
        layer = max(1, model.layers // 2) if self.layer is None else self.layer
        if not 1 <= layer <= model.layers:
            raise InputError(
                f"rmu: layer = {layer}; expected 1 to {model.layers} (after the last "
                "layer)"
            )
        return dataclasses.replace(self, layer=layer)

    def prepare(self, setting: Setting) -> Prepared:
        """Draw the control vector."""
        width = setting.model.width
        control = objectives.control_vector(setting.key, width, self.direction)
        return Prepared(data={"control": control})

    def forget(self) -> LossTerm:
        """Distance to the control vector."""
        settings = {"layer": self.layer, "steering": self.steering}
        if self.adaptive:
            data = ("control", "reference_params")
            return LossTerm(objectives.adaptive_rmu, settings, data)
        return LossTerm(objectives.rmu, settings, ("control",))

    def retain(self) -> LossTerm | None:
        """Distance to the reference's stream."""
        if not self.retain_weight:
            return None
        settings = {"layer": self.layer}
        return LossTerm(objectives.rmu_retain, settings, ("reference_params",))


@dataclass(frozen=True, kw_only=True)
class Wga(Method):
    """Gradient ascent, weighted by the probability of each token.

    Source: arXiv 2502.19301.
    """

    beta: Annotated[float, NOT_NEGATIVE] = 1.0
    """Exponent of the probability."""
    recipe = Recipe(epochs=5)
    forget = term_of(objectives.wga, "beta")


@dataclass(frozen=True, kw_only=True)
class SatImp(Method):
    """Ascent weighted by saturation and importance.

    Source: arXiv 2505.11953.
    """

    retain_weight: float = 0.1
    beta1: Annotated[float, NOT_NEGATIVE] = 5.0
    """Exponent of the probability."""
    beta2: Annotated[float, NOT_NEGATIVE] = 1.0
    """Exponent of one minus the probability."""
    recipe = Recipe(epochs=5)
    forget = term_of(objectives.satimp, "beta1", "beta2")


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """The gold standard: train on the retain texts alone.

    Start from the model that has seen neither the retain nor the forget texts.
    """

    retain_weight: Annotated[float, POSITIVE] = 1.0

    def forget(self) -> None:
        """Nothing."""
