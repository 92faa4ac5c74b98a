"""Unlearning objectives: pure losses on a batch of texts, all to be minimized.

Every objective is called as `objective(params, batch, *, apply_fn, key=None,
**settings)` and returns its float32 value with a `LossAux`. `params` are the parameters
to train, `apply_fn` is `LanguageModel.apply` or anything called like it; `key` is for
random draws, of which the present objectives make none. Settings default to the
published values. A docstring lists only what an objective takes beyond these.
"""

from lt_mia_jax.unlearning.objectives.batch import Objective
from lt_mia_jax.unlearning.objectives.distributions import (
    ce_u,
    kl_to_reference,
    pdu_flatten,
    undial,
)
from lt_mia_jax.unlearning.objectives.likelihood import (
    alternative_nll,
    cached_reference_nll,
    neg_nll,
    nll,
)
from lt_mia_jax.unlearning.objectives.policy import grpo
from lt_mia_jax.unlearning.objectives.preference import dpo, npo, simnpo
from lt_mia_jax.unlearning.objectives.representation import (
    adaptive_rmu,
    control_vector,
    rmu,
    rmu_retain,
)
from lt_mia_jax.unlearning.objectives.weighted import satimp, tnpo, wga, wtnpo

OBJECTIVES: dict[str, Objective] = {
    objective.__name__: objective
    for objective in (
        adaptive_rmu,
        alternative_nll,
        ce_u,
        dpo,
        grpo,
        kl_to_reference,
        neg_nll,
        nll,
        npo,
        pdu_flatten,
        rmu,
        rmu_retain,
        satimp,
        simnpo,
        tnpo,
        undial,
        wga,
        wtnpo,
    )
}
"""All objectives by name. A new one is a function and a row here."""

__all__ = ["OBJECTIVES", "cached_reference_nll", "control_vector"]
