"""Edits of activations at inference; weights stay as they are."""

from lt_mia_jax.unlearning.interventions.edits import InputAware as InputAware
from lt_mia_jax.unlearning.interventions.edits import Projection as Projection
from lt_mia_jax.unlearning.interventions.edits import Rotation as Rotation
from lt_mia_jax.unlearning.interventions.edits import Scalar as Scalar
from lt_mia_jax.unlearning.interventions.edits import Steering as Steering
from lt_mia_jax.unlearning.interventions.edits import fold_projection as fold_projection
from lt_mia_jax.unlearning.interventions.edits import (
    orthonormal_rows as orthonormal_rows,
)
from lt_mia_jax.unlearning.interventions.edits import project as project
from lt_mia_jax.unlearning.interventions.edits import rotate as rotate
from lt_mia_jax.unlearning.interventions.edits import steer as steer
