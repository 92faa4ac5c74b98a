"""Optax transformations for unlearning: what changes the update, not the loss.

Each is an `optax.GradientTransformationExtraArgs`. The updates are gradients of the
forget objective; those of the retain objective are the extra argument `retain_grads`.
Arrays that a transformation needs are part of its state. `TRANSFORMS` lists these, and
those of `transfer` once their modules are imported; each row can be imported from here.
"""

import importlib
import pkgutil
from collections.abc import Callable

import optax

from lt_mia_jax.training.transforms.contract import (
    TRANSFORMS,
    Transformation,
    monitored,
)
from lt_mia_jax.training.transforms.mask import layer_mask
from lt_mia_jax.unlearning.transforms.realized import second_moment

for _file in pkgutil.iter_modules(__path__):  # their decorators fill the table
    importlib.import_module(f"{__name__}.{_file.name}")


def __getattr__(name: str) -> Callable[..., optax.GradientTransformationExtraArgs]:
    if name not in TRANSFORMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return TRANSFORMS[name].make


__all__ = ["TRANSFORMS", "Transformation", "layer_mask", "monitored", "second_moment"]
