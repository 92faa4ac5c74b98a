"""Methods with bounded objectives: preferences, other answers, lowered logits."""

from dataclasses import dataclass
from typing import Annotated

from lt_mia_jax.errors import NOT_NEGATIVE, POSITIVE
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.method import Method, Recipe, term_of


@dataclass(frozen=True, kw_only=True)
class Npo(Method):
    """Negative preference optimization.

    Source: arXiv 2404.05868.
    """

    beta: Annotated[float, POSITIVE] = 0.1
    """Inverse temperature; towards 0 it becomes gradient ascent."""
    cached_reference = True
    forget = term_of(objectives.npo, "beta")


@dataclass(frozen=True, kw_only=True)
class SimNpo(Method):
    """NPO on the mean token loss, without a reference model.

    Source: arXiv 2410.07163.
    """

    forget_weight: float = 0.125
    beta: Annotated[float, POSITIVE] = 4.5
    """Inverse temperature."""
    delta: float = 0.0
    """Margin in nats per token."""
    forget = term_of(objectives.simnpo, "beta", "delta")


@dataclass(frozen=True, kw_only=True)
class IdkDpo(Method):
    """Direct preference optimization of a refusal over the answer.

    Source: TOFU, arXiv 2401.06121; DPO, arXiv 2305.18290.
    """

    beta: Annotated[float, POSITIVE] = 0.1
    """Inverse temperature."""
    alternative = "refusal"
    cached_reference = True
    forget = term_of(objectives.dpo, "beta")


@dataclass(frozen=True, kw_only=True)
class AltPo(IdkDpo):
    """Direct preference optimization of a false answer over the true one.

    The published method has the model write plausible answers; here they are the
    inverted facts of the data.

    Source: arXiv 2409.13474.
    """

    alternative = "inverted"


@dataclass(frozen=True, kw_only=True)
class IdkNll(Method):
    """Learn refusals instead of the answers (PO of TOFU).

    Source: arXiv 2401.06121.
    """

    alternative = "refusal"
    forget = term_of(objectives.alternative_nll)


@dataclass(frozen=True, kw_only=True)
class Meow(IdkNll):
    """Learn inverted facts instead of the answers.

    Source: MEOW, arXiv 2409.11844.
    """

    alternative = "inverted"


@dataclass(frozen=True, kw_only=True)
class Tnpo(Method):
    """Token-wise NPO (TNPO); with `alpha` weighted by the probability (WTNPO).

    Source: arXiv 2502.19301.
    """

    beta: Annotated[float, POSITIVE] = 4.0
    """Exponent of the ratio to the reference."""
    alpha: Annotated[float, NOT_NEGATIVE] = 0.0
    """Exponent of the probability; 1.5 is WTNPO."""
    cached_reference = True
    forget = term_of(objectives.wtnpo, "beta", "alpha")


@dataclass(frozen=True, kw_only=True)
class Undial(Method):
    """Self-distillation with a lowered logit of the true token.

    Source: arXiv 2402.10052.
    """

    retain_weight: float = 0.0
    beta: Annotated[float, NOT_NEGATIVE] = 10.0
    """Subtracted from the logit of the target."""
    recipe = Recipe(learning_rate=1e-4)
    forget = term_of(objectives.undial, "beta", data=("reference_params",))


@dataclass(frozen=True, kw_only=True)
class CeU(Method):
    """Cross-entropy to the model's own prediction without the true token.

    Source: arXiv 2503.01224.
    """

    retain_weight: float = 0.0
    skip: Annotated[int, NOT_NEGATIVE] = 1
    """Number of leading target tokens that are left out."""
    forget = term_of(objectives.ce_u, "skip")
