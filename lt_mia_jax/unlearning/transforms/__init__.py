"""Optax transformations for unlearning: what changes the update, not the loss.

Each is an `optax.GradientTransformationExtraArgs`. Gradients of the forget objective
are the updates; those of the retain objective come as the extra argument
`retain_grads`. Arrays that a transformation needs are part of its state.
"""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.unlearning.transforms.anchor import ema_teacher as ema_teacher
    from lt_mia_jax.unlearning.transforms.anchor import ewc_pull as ewc_pull
    from lt_mia_jax.unlearning.transforms.anchor import (
        stochastic_restore as stochastic_restore,
    )
    from lt_mia_jax.unlearning.transforms.anchor import trust_region as trust_region
    from lt_mia_jax.unlearning.transforms.combine import (
        adaptive_combine as adaptive_combine,
    )
    from lt_mia_jax.unlearning.transforms.combine import ascend as ascend
    from lt_mia_jax.unlearning.transforms.combine import (
        combine_forget_retain as combine_forget_retain,
    )
    from lt_mia_jax.unlearning.transforms.combine import dual_combine as dual_combine
    from lt_mia_jax.unlearning.transforms.contract import monitored as monitored
    from lt_mia_jax.unlearning.transforms.mask import fisher_masked as fisher_masked
    from lt_mia_jax.unlearning.transforms.mask import freeze as freeze
    from lt_mia_jax.unlearning.transforms.mask import layer_mask as layer_mask
    from lt_mia_jax.unlearning.transforms.mask import saliency_masked as saliency_masked
    from lt_mia_jax.unlearning.transforms.products import dot as tree_dot  # noqa: F401
    from lt_mia_jax.unlearning.transforms.project import (
        project_against as project_against,
    )
    from lt_mia_jax.unlearning.transforms.project import (
        retain_subspace_projection as retain_subspace_projection,
    )
    from lt_mia_jax.unlearning.transforms.realized import (
        project_realized_update as project_realized_update,
    )
    from lt_mia_jax.unlearning.transforms.realized import second_moment as second_moment
    from lt_mia_jax.unlearning.transforms.schedule import alternate as alternate
    from lt_mia_jax.unlearning.transforms.schedule import (
        sharpness_aware as sharpness_aware,
    )

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
