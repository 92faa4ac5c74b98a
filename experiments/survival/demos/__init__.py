"""One file a system, each with a `DEMONSTRATION`; `DEMOS` lists them by file name."""

import importlib
import pkgutil

from experiments.survival.demonstration import Demonstration

DEMOS: dict[str, Demonstration] = {
    _file.name: importlib.import_module(f"{__name__}.{_file.name}").DEMONSTRATION
    for _file in pkgutil.iter_modules(__path__)
}
