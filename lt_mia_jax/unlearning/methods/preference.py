"""Methods with bounded objectives: preferences, other answers, lowered logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.limits import NOT_NEGATIVE, POSITIVE, Limit
from lt_mia_jax.unlearning.methods.method import Alternative, LossTerm, Method, Recipe
from lt_mia_jax.unlearning.objectives import distributions


@dataclass(frozen=True, kw_only=True)
class Npo(Method):
    """Negative preference optimization.

    Source: arXiv 2404.05868.
    """

    beta: float = 0.1
    """Inverse temperature; towards 0 it becomes gradient ascent."""
    limits: ClassVar[Mapping[str, Limit]] = {"beta": POSITIVE}
    cached_reference: ClassVar[bool] = True

    def forget(self) -> LossTerm:
        """NPO."""
        return LossTerm(objectives.npo, {"beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class SimNpo(Method):
    """NPO on the mean token loss, without a reference model.

    Source: arXiv 2410.07163.
    """

    forget_weight: float = 0.125
    beta: float = 4.5
    """Inverse temperature."""
    delta: float = 0.0
    """Margin in nats per token."""
    limits: ClassVar[Mapping[str, Limit]] = {"beta": POSITIVE}

    def forget(self) -> LossTerm:
        """SimNPO."""
        return LossTerm(objectives.simnpo, {"beta": self.beta, "delta": self.delta})


@dataclass(frozen=True, kw_only=True)
class IdkDpo(Method):
    """Direct preference optimization of a refusal over the answer.

    Source: TOFU, arXiv 2401.06121; DPO, arXiv 2305.18290.
    """

    beta: float = 0.1
    """Inverse temperature."""
    limits: ClassVar[Mapping[str, Limit]] = {"beta": POSITIVE}
    alternative: ClassVar[Alternative | None] = "refusal"
    cached_reference: ClassVar[bool] = True

    def forget(self) -> LossTerm:
        """DPO."""
        return LossTerm(objectives.dpo, {"beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class AltPo(IdkDpo):
    """Direct preference optimization of a false answer over the true one.

    The published method has the model write plausible answers; here they are the
    inverted facts of the data.

    Source: arXiv 2409.13474.
    """

    alternative: ClassVar[Alternative | None] = "inverted"


@dataclass(frozen=True, kw_only=True)
class IdkNll(Method):
    """Learn refusals instead of the answers (PO of TOFU).

    Source: arXiv 2401.06121.
    """

    alternative: ClassVar[Alternative | None] = "refusal"

    def forget(self) -> LossTerm:
        """Loss of the refusal."""
        return LossTerm(objectives.alternative_nll)


@dataclass(frozen=True, kw_only=True)
class Meow(IdkNll):
    """Learn inverted facts instead of the answers.

    Source: MEOW, arXiv 2409.11844.
    """

    alternative: ClassVar[Alternative | None] = "inverted"


@dataclass(frozen=True, kw_only=True)
class Tnpo(Method):
    """Token-wise NPO (TNPO); with `alpha` weighted by the probability (WTNPO).

    Source: arXiv 2502.19301.
    """

    beta: float = 4.0
    """Exponent of the ratio to the reference."""
    alpha: float = 0.0
    """Exponent of the probability; 1.5 is WTNPO."""
    limits: ClassVar[Mapping[str, Limit]] = {"beta": POSITIVE, "alpha": NOT_NEGATIVE}
    cached_reference: ClassVar[bool] = True

    def forget(self) -> LossTerm:
        """TNPO or WTNPO."""
        settings = {"beta": self.beta, "alpha": self.alpha}
        return LossTerm(objectives.wtnpo, settings)


@dataclass(frozen=True, kw_only=True)
class Undial(Method):
    """Self-distillation with a lowered logit of the true token.

    Source: arXiv 2402.10052.
    """

    retain_weight: float = 0.0
    beta: float = 10.0
    """Subtracted from the logit of the target."""
    recipe: ClassVar[Recipe] = Recipe(learning_rate=1e-4)
    limits: ClassVar[Mapping[str, Limit]] = {"beta": NOT_NEGATIVE}

    def forget(self) -> LossTerm:
        """UNDIAL."""
        data = ("reference_params",)
        return LossTerm(distributions.undial, {"beta": self.beta}, data)


@dataclass(frozen=True, kw_only=True)
class CeU(Method):
    """Cross-entropy to the model's own prediction without the true token.

    Source: arXiv 2503.01224.
    """

    retain_weight: float = 0.0
    skip: int = 1
    """Number of leading target tokens that are left out."""
    limits: ClassVar[Mapping[str, Limit]] = {"skip": NOT_NEGATIVE}

    def forget(self) -> LossTerm:
        """CE-U."""
        return LossTerm(distributions.ce_u, {"skip": self.skip})
