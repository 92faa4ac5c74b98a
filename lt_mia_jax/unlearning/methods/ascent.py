"""Ascent on what is to be forgotten, plain, weighted, or in the stream."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.limits import NOT_NEGATIVE, POSITIVE, Limit
from lt_mia_jax.unlearning.methods.method import LossTerm, Method, Recipe
from lt_mia_jax.unlearning.objectives import distributions, representation


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


TO_REFERENCE = LossTerm(distributions.kl_to_reference, data=("reference_params",))
"""Retain texts are held by the KL divergence to the model before unlearning."""


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
    """The stream on forget texts is sent to a random direction, held on retain texts.

    Source: WMDP, arXiv 2403.03218; `adaptive`: arXiv 2408.06223.
    """

    layer: int | None = None
    """Layers that the stream has passed; None is the middle of the model."""
    steering: float = 2.0
    """Length of the vector aimed at."""
    adaptive: bool = False
    """Multiply it with the length of the reference's stream at each token."""
    direction: Literal["isotropic", "positive"] = "isotropic"
    """How the vector is drawn; "positive" is the published one."""
    limits: ClassVar[Mapping[str, Limit]] = {"steering": POSITIVE}

    def fitted(self, model: ModelConfig) -> "Rmu":
        """With a layer."""
        middle = max(1, model.layers // 2)
        layer = middle if self.layer is None else self.layer
        if not 1 <= layer <= model.layers:
            raise InputError(
                f"rmu: layer = {layer}; expected 1 to {model.layers} (after the last "
                "layer)"
            )
        return dataclasses.replace(self, layer=layer)

    def forget(self) -> LossTerm:
        """Distance to the control vector."""
        settings = {"layer": self.layer, "steering": self.steering}
        if self.adaptive:
            data = ("control", "reference_params")
            return LossTerm(representation.adaptive_rmu, settings, data)
        return LossTerm(representation.rmu, settings, ("control",))

    def retain(self) -> LossTerm | None:
        """Distance to the reference's stream."""
        if not self.retain_weight:
            return None
        settings = {"layer": self.layer}
        return LossTerm(representation.rmu_retain, settings, ("reference_params",))


@dataclass(frozen=True, kw_only=True)
class Wga(Method):
    """Gradient ascent, weighted by the probability of each token.

    Source: arXiv 2502.19301.
    """

    beta: float = 1.0
    """Exponent of the probability."""
    recipe: ClassVar[Recipe] = Recipe(epochs=5)
    limits: ClassVar[Mapping[str, Limit]] = {"beta": NOT_NEGATIVE}

    def forget(self) -> LossTerm:
        """WGA."""
        return LossTerm(objectives.wga, {"beta": self.beta})


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
    limits: ClassVar[Mapping[str, Limit]] = {
        "beta1": NOT_NEGATIVE,
        "beta2": NOT_NEGATIVE,
    }

    def forget(self) -> LossTerm:
        """SatImp."""
        return LossTerm(objectives.satimp, {"beta1": self.beta1, "beta2": self.beta2})


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """The gold standard: learn the retain texts, never the forget texts.

    Give it the model that was there before both.
    """

    limits: ClassVar[Mapping[str, Limit]] = {"retain_weight": POSITIVE}

    def forget(self) -> None:
        """Nothing."""
