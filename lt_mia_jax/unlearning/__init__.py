"""Making models forget: objectives, transformations, interventions, and methods."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.unlearning.interventions.edits import prompted as prompted
    from lt_mia_jax.unlearning.interventions.storage import (
        load_intervention as load_intervention,
    )
    from lt_mia_jax.unlearning.interventions.storage import (
        save_intervention as save_intervention,
    )
    from lt_mia_jax.unlearning.methods import METHODS as METHODS
    from lt_mia_jax.unlearning.methods import Method as Method
    from lt_mia_jax.unlearning.objectives.batch import TextBatch as TextBatch
    from lt_mia_jax.unlearning.objectives.distributions import ce_u as ce_u
    from lt_mia_jax.unlearning.objectives.distributions import (
        kl_to_reference as kl_to_reference,
    )
    from lt_mia_jax.unlearning.objectives.distributions import (
        pdu_flatten as pdu_flatten,
    )
    from lt_mia_jax.unlearning.objectives.distributions import undial as undial
    from lt_mia_jax.unlearning.objectives.likelihood import (
        alternative_nll as alternative_nll,
    )
    from lt_mia_jax.unlearning.objectives.likelihood import (
        cached_reference_nll as cached_reference_nll,
    )
    from lt_mia_jax.unlearning.objectives.likelihood import dpo as dpo
    from lt_mia_jax.unlearning.objectives.likelihood import neg_nll as neg_nll
    from lt_mia_jax.unlearning.objectives.likelihood import nll as nll
    from lt_mia_jax.unlearning.objectives.likelihood import npo as npo
    from lt_mia_jax.unlearning.objectives.likelihood import satimp as satimp
    from lt_mia_jax.unlearning.objectives.likelihood import simnpo as simnpo
    from lt_mia_jax.unlearning.objectives.likelihood import tnpo as tnpo
    from lt_mia_jax.unlearning.objectives.likelihood import wga as wga
    from lt_mia_jax.unlearning.objectives.likelihood import wtnpo as wtnpo
    from lt_mia_jax.unlearning.objectives.policy import (
        group_advantages as group_advantages,
    )
    from lt_mia_jax.unlearning.objectives.policy import grpo as grpo
    from lt_mia_jax.unlearning.objectives.representation import (
        control_vector as control_vector,
    )
    from lt_mia_jax.unlearning.objectives.representation import rmu as rmu
    from lt_mia_jax.unlearning.objectives.representation import rmu_retain as rmu_retain
    from lt_mia_jax.unlearning.train import ForgetTexts as ForgetTexts
    from lt_mia_jax.unlearning.train import UnlearnConfig as UnlearnConfig
    from lt_mia_jax.unlearning.train import unlearn as unlearn
    from lt_mia_jax.unlearning.transforms import adaptive_combine as adaptive_combine
    from lt_mia_jax.unlearning.transforms import alternate as alternate
    from lt_mia_jax.unlearning.transforms import ascend as ascend
    from lt_mia_jax.unlearning.transforms import (
        combine_forget_retain as combine_forget_retain,
    )
    from lt_mia_jax.unlearning.transforms import dual_combine as dual_combine
    from lt_mia_jax.unlearning.transforms import ema_teacher as ema_teacher
    from lt_mia_jax.unlearning.transforms import ewc_pull as ewc_pull
    from lt_mia_jax.unlearning.transforms import fisher_masked as fisher_masked
    from lt_mia_jax.unlearning.transforms import freeze as freeze
    from lt_mia_jax.unlearning.transforms import project_against as project_against
    from lt_mia_jax.unlearning.transforms import (
        project_realized_update as project_realized_update,
    )
    from lt_mia_jax.unlearning.transforms import (
        retain_subspace_projection as retain_subspace_projection,
    )
    from lt_mia_jax.unlearning.transforms import saliency_masked as saliency_masked
    from lt_mia_jax.unlearning.transforms import sharpness_aware as sharpness_aware
    from lt_mia_jax.unlearning.transforms import (
        stochastic_restore as stochastic_restore,
    )
    from lt_mia_jax.unlearning.transforms import trust_region as trust_region

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
