"""Making models forget: objectives, transformations, interventions, and methods.

Every objective and transformation can be imported from here, and so can what `_HOMES`
lists; modules are loaded when a name is used.
"""

import importlib
from typing import Any

_HOMES = {
    "ForgetTexts": "recipe",
    "METHODS": "methods",
    "Method": "methods",
    "TextBatch": "objectives.batch",
    "UnlearnConfig": "recipe",
    "load_intervention": "interventions.storage",
    "save_intervention": "interventions.storage",
    "unlearn": "train",
}


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        homes = (_HOMES[name],) if name in _HOMES else ("objectives", "transforms")
        for home in homes:
            module = importlib.import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
