import importlib
import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest

import lt_mia_jax
from lt_mia_jax.lazy import exported_names

FILES = {
    "__init__.py": """
        from typing import TYPE_CHECKING

        from lt_mia_jax.lazy import lazy_exports

        if TYPE_CHECKING:
            from shelf import tools as tools
            from shelf.deep import inner as inner
            from shelf.deep.inner import Box as Box
            from shelf.tools import cut as slice_of

        __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
        """,
    "tools.py": "def cut(): return 'cut'",
    "deep/__init__.py": "",
    "deep/inner.py": "class Box: pass",
}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "shelf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: importlib.import_module("shelf")
    for name in [n for n in sys.modules if n.split(".")[0] == "shelf"]:
        del sys.modules[name]


def loaded():
    return {name for name in sys.modules if name.startswith("shelf.")}


def test_a_name_imports_its_own_module_alone(shelf):
    package = shelf()
    assert not loaded()
    assert package.slice_of() == "cut"
    assert loaded() == {"shelf.tools"}
    assert package.slice_of is vars(package)["slice_of"]
    from shelf import Box, inner  # type: ignore[import-not-found]

    assert Box is inner.Box
    assert package.tools is sys.modules["shelf.tools"]


def test_the_names_are_those_of_the_source(shelf):
    package = shelf()
    assert package.__all__ == ["Box", "inner", "slice_of", "tools"]
    assert set(package.__all__) <= set(dir(package))
    assert not loaded()
    everything = {}
    exec("from shelf import *", everything)
    assert set(package.__all__) <= set(everything)
    with pytest.raises(AttributeError, match="'shelf' has no attribute 'cut'"):
        _ = package.cut


def test_no_exported_name_hides_behind_a_submodule():
    root = Path(lt_mia_jax.__file__).parent
    hidden = []
    for init in root.rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(root.parent).parts)
        for name, source in exported_names(init.read_text()).items():
            module = importlib.util.find_spec(f"{package}.{name}")
            if module is not None and module.name != ".".join(source):
                hidden.append(f"{package}.{name}")
    assert not hidden
