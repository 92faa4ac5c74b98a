"""Membership scores as pure functions of token statistics, and their table."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_mia_jax.attacks.scores.formulas import *  # noqa: F403
    from lt_mia_jax.attacks.scores.table import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Functions of `formulas` and `table`, imported when first used."""
    for home in ("formulas", "table"):
        module = importlib.import_module(f"{__name__}.{home}")
        if not name.startswith("_") and hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
