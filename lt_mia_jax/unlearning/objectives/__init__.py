"""Unlearning objectives as pure losses."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.unlearning.objectives.likelihood import Reduction as Reduction
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
    from lt_mia_jax.unlearning.objectives.likelihood import reference_of as reference_of
    from lt_mia_jax.unlearning.objectives.likelihood import satimp as satimp
    from lt_mia_jax.unlearning.objectives.likelihood import simnpo as simnpo
    from lt_mia_jax.unlearning.objectives.likelihood import target_nll as target_nll
    from lt_mia_jax.unlearning.objectives.likelihood import tnpo as tnpo
    from lt_mia_jax.unlearning.objectives.likelihood import wga as wga
    from lt_mia_jax.unlearning.objectives.likelihood import wtnpo as wtnpo

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
