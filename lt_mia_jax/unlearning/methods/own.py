"""Methods of one's own, from a file that the user names."""

import dataclasses
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import fingerprint
from lt_mia_jax.unlearning.methods import find_method
from lt_mia_jax.unlearning.methods.method import Method

_PREFIX = "lt_mia_method_"


def choose_method(name: str) -> Method:
    """The method that `--method NAME` selects: a built-in one, or FILE.py:Name.

    Raises:
      InputError: see `find_method` and `load_method`.
    """
    from_file = ".py:" in name or name.endswith(".py")
    return load_method(name) if from_file else find_method(name)


def load_method(name: str) -> Method:
    """The method `Name` of FILE.py:Name, with its defaults. Executes the file.

    Raises:
      InputError: the file does not exist or fails, it has no such name, or that is
        neither a `Method` nor a class of methods.
    """
    file, _, wanted = name.rpartition(":") if ".py:" in name else (name, "", "")
    module = _execute(Path(file))
    found: Any = getattr(module, wanted, None) if wanted else None
    if found is None:
        own = [
            other
            for other, value in vars(module).items()
            if _is_method(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise InputError(
            (f"{file} has no {wanted!r}" if wanted else f"{name} names no method")
            + f"; expected {file}:Name with {' or '.join(own) or 'a class of methods'}"
        )
    if not _is_method(found):
        raise InputError(
            f"{name} is a {type(found).__name__}; expected a subclass of "
            "lt_mia_jax.unlearning.methods.Method, or a value of one"
        )
    if not isinstance(found, type):
        return found
    inherited = {field.name for field in dataclasses.fields(found)}
    bare = [
        field
        for field, hint in inspect.get_annotations(found).items()
        if field not in inherited and "ClassVar" not in str(hint)
    ]
    if bare:
        raise InputError(
            f"{name}: {', '.join(bare)} would be no settings; put "
            "@dataclass(frozen=True, kw_only=True) above the class"
        )
    try:
        return found()
    except TypeError as error:
        raise InputError(f"{name}: every field needs a default ({error})") from error


def source_of(method: Method) -> str:
    """Source text of a method from outside this package, to tell versions apart.

    Of a method from FILE.py:Name the whole file, which may hold its objective; of
    another one its classes. Empty for built-in methods, and without source code.
    """
    parts = []
    for cls in type(method).__mro__:
        if cls.__module__.startswith(("lt_mia_jax.", "builtins")):
            continue
        whole = cls.__module__.startswith(_PREFIX)
        try:
            parts.append(
                inspect.getsource(sys.modules[cls.__module__] if whole else cls)
            )
        except (OSError, TypeError, KeyError):
            continue
    return "\n".join(parts)


def file_of(method: Method) -> str | None:
    """The file that a method was taken from by `load_method`, else None."""
    home = type(method).__module__
    return sys.modules[home].__file__ if home.startswith(_PREFIX) else None


def _execute(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # `is_file` raises for a name that is too long
        raise InputError(f"{str(path)[:200]}: no such file; expected FILE.py:Name")
    name = f"{_PREFIX}{path.stem}_{fingerprint(str(path.resolve()))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and inspect look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        said = " ".join(str(error).split())
        raise InputError(f"{path} fails: {type(error).__name__}: {said}") from error
    return module


def _is_method(value: Any) -> bool:
    return isinstance(value, Method) or (
        isinstance(value, type) and issubclass(value, Method)
    )
