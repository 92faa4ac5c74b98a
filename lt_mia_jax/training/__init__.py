"""Training that any step can use: state, optimizer, loop, checkpoints, metrics."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.training.checkpoint import Checkpointer as Checkpointer
    from lt_mia_jax.training.checkpoint import Restored as Restored
    from lt_mia_jax.training.config import Constant as Constant
    from lt_mia_jax.training.config import Cosine as Cosine
    from lt_mia_jax.training.config import Linear as Linear
    from lt_mia_jax.training.config import OptimizerConfig as OptimizerConfig
    from lt_mia_jax.training.loop import FitResult as FitResult
    from lt_mia_jax.training.loop import fit as fit
    from lt_mia_jax.training.loop import step_program as step_program
    from lt_mia_jax.training.metrics import MetricsWriter as MetricsWriter
    from lt_mia_jax.training.optimizer import learning_rate as learning_rate
    from lt_mia_jax.training.optimizer import make_optimizer as make_optimizer
    from lt_mia_jax.training.state import TrainState as TrainState
    from lt_mia_jax.training.state import init_state as init_state

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
