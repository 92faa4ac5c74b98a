"""Packages whose names are imported on first use (PEP 562)."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from its own source.

    The names are those imported under `if TYPE_CHECKING:`, so type checkers read the
    same list:

        if TYPE_CHECKING:
            from lt_mia_jax.features.store import FeatureStore as FeatureStore

        __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)

    A name must not be that of a submodule, unless it is the submodule: importing that
    would hide it.
    """
    sources = exported_names(Path(file).read_text(encoding="utf-8"))

    def __getattr__(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = sources[name]
        home = importlib.import_module(module)
        if module == package or not hasattr(home, original):
            found = importlib.import_module(f"{module}.{original}")
        else:
            found = getattr(home, original)
        setattr(importlib.import_module(package), name, found)
        return found

    def __dir__() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *sources})

    return __getattr__, __dir__, sorted(sources)


def exported_names(source: str) -> dict[str, tuple[str, str]]:
    """Module and name there of each import under `if TYPE_CHECKING:`."""
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
