"""Frozen dataclasses to and from JSON; unknown keys are refused."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any, *, tagged: bool = True) -> dict[str, Any]:
    """A config as JSON values.

    Args:
      config: a dataclass.
      tagged: every dataclass carries its class name as `type`, by which unions are
        read back; records without unions do without it.
    """
    return _encode(config, tagged)


def _encode(value: Any, tagged: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _encode(getattr(value, field.name), tagged)
            for field in dataclasses.fields(value)
        }
        return {"type": type(value).__name__, **fields} if tagged else fields
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_encode(item, tagged) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode(item, tagged) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def from_dict(cls: type[ConfigT], data: Any) -> ConfigT:
    """Build a config of type `cls`, the inverse of `to_dict`.

    Raises:
      InputError: unknown or missing keys, or a value of the wrong type, with the
        path of the field.
    """
    return _decode(cls, data, cls.__name__)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}: found {value!r}, expected one of {arguments}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: found {value!r}, expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            inner = [arguments[0]] * len(value)
        elif len(arguments) == len(value):
            inner = list(arguments)
        else:
            raise InputError(
                f"{where}: found {len(value)} items, expected {len(arguments)}"
            )
        pairs = zip(inner, value, strict=True)
        return tuple(_decode(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(pairs))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: found {value!r}, expected an object")
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            options = [member.value for member in hint]
            raise InputError(
                f"{where}: found {value!r}, expected one of {options}"
            ) from None
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if isinstance(hint, type) and (not isinstance(value, hint) or wrong_bool):
        raise InputError(f"{where}: found {value!r}, expected {hint.__name__}")
    return value


def _decode_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    classes: list[Any] = [o for o in options if dataclasses.is_dataclass(o)]
    if isinstance(value, Mapping) and classes:
        named = {option.__name__: option for option in classes}
        tag = value.get("type", classes[0].__name__ if len(classes) == 1 else None)
        if tag not in named:
            raise InputError(
                f"{where}: found type {tag!r}, expected one of {sorted(named)}"
            )
        return _decode_dataclass(named[tag], value, where)
    problems = []
    for option in options:
        if option is type(None) or dataclasses.is_dataclass(option):
            continue
        try:
            return _decode(option, value, where)
        except InputError as error:
            problems.append(str(error))
    raise InputError("; ".join(problems) or f"{where}: unexpected {value!r}")


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: found {value!r}, expected an object")
    given = {key: item for key, item in value.items() if key != "type"}
    tag = value.get("type", cls.__name__)
    if tag != cls.__name__:
        raise InputError(f"{where}: found type {tag!r}, expected {cls.__name__!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(set(given) - set(fields))
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise InputError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; "
            f"known keys are {sorted(fields)}"
        )
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _decode(hints[name], item, f"{where}.{name}")
            for name, item in given.items()
        }
    )


def save_json(path: Path | str, config: Any) -> None:
    """Write a config as JSON, atomically."""
    write_json(path, to_dict(config))


def load_json(path: Path | str, cls: type[ConfigT]) -> ConfigT:
    """Read a config written by `save_json`.

    Raises:
      InputError: the file is missing or broken, or does not describe a `cls`.
    """
    try:
        return from_dict(cls, read_json(path))
    except InputError as error:
        message = str(error)
        raise InputError(
            message if str(path) in message else f"{path}: {message}"
        ) from error
