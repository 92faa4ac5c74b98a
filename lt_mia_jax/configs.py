"""Frozen dataclasses to and from JSON; unknown keys are refused."""

import dataclasses
import enum
import errno
import functools
import math
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from lt_mia_jax.errors import NOT_NEGATIVE, InputError, Range

ConfigT = TypeVar("ConfigT")
Count = Annotated[int, NOT_NEGATIVE]
"""A field that is refused below 0 when it is read; any `Range` may stand there."""
INPUT = "may name a path that the command reads"
Source = Annotated[str, INPUT]
"""A string flag that may name a path to read, such as a model; `Path`s always do."""


def to_dict(config: Any, *, tagged: bool = True) -> dict[str, Any]:
    """A config as JSON values.

    If `tagged`, every dataclass carries its class name as `type`, by which unions are
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


def narrowed(config: Any, cls: type[ConfigT]) -> ConfigT:
    """The fields of `cls` alone, of a dataclass that has them and more."""
    part: Any = cls  # a dataclass
    return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(part)})


def from_dict(cls: type[ConfigT], data: Any, where: str | None = None) -> ConfigT:
    """Build a config of type `cls` from parsed JSON, the inverse of `to_dict`.

    In messages `where`, or the name of `cls`, opens the path of each field.

    Raises:
      InputError: everything that is missing, unknown or of the wrong type, with the
        path of the field (the first six).
    """
    decoder = _Decoder(lenient=False)
    found = decoder.decode(cls, data, cls.__name__ if where is None else where)
    refuse("", decoder.problems)
    return found


def read_record(
    cls: type[ConfigT], data: Any, where: str = ""
) -> tuple[ConfigT, list[str]]:
    """`from_dict` for records that other versions wrote, and everything that is wrong.

    Unknown keys are left out, null is a record whose fields may all be null or absent,
    and numbers must be finite.

    Args:
      cls: a dataclass.
      data: parsed JSON.
      where: opens the path of each field.

    Returns:
      The record, and a phrase for each problem; with any, there is no record to use.
    """
    decoder = _Decoder(lenient=True)
    found = decoder.decode(cls, data, where)
    return found, decoder.problems


def refuse(source: Any, problems: Sequence[str], fix: str = "") -> None:
    """Raise an `InputError` with the first six problems of `source`, if there are any.

    `source` is the file, or empty; `fix` is a sentence on what to do.
    """
    if problems:
        more = "; and more" if len(problems) > 6 else ""
        text = "; ".join(problems[:6]) + more
        text = f"{source}: {text}" if source else text
        raise InputError(f"{text}. {fix}" if fix else text)


_LARGEST = 2**63 - 1
_FLOATS = (float, float | None)
_EXPECTED = {
    str: "a string",
    int: "an integer",
    float: "a finite number (float)",
    bool: "true or false",
}
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


class _Decoder:
    """Builds values by their type hints; what is wrong becomes None and a problem."""

    def __init__(self, lenient: bool):
        self.lenient = lenient
        self.problems: list[str] = []

    def decode(self, hint: Any, value: Any, where: str) -> Any:
        if type(value) is float and hint in _FLOATS and math.isfinite(value):
            return value  # most values of large files
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin is Annotated:
            return self._annotated(arguments, value, where)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, value, where)
        if origin is typing.Literal:
            return self._choice(arguments, value, where)
        if origin is tuple:
            return self._tuple(arguments, value, where)
        if origin in (dict, Mapping):
            if not isinstance(value, Mapping):
                return self._wrong(value, where, "an object")
            inner = arguments[1]
            return {k: self.decode(inner, v, _at(where, k)) for k, v in value.items()}
        if dataclasses.is_dataclass(hint):
            return self._dataclass(hint, value, where)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            options = tuple(member.value for member in hint)
            known = self._choice(options, value, where)
            return None if known is None else hint(known)
        if hint is Path and isinstance(value, str):
            return Path(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Beyond any float, and NaN, are outside.
        if hint is float and number and abs(value) <= sys.float_info.max:
            return float(value)
        if hint is int and number and abs(value) > _LARGEST:
            return self._wrong(value, where, "an integer of 64 bits")
        if not isinstance(hint, type):
            return value
        wrong_bool = isinstance(value, bool) and hint is not bool
        if hint is float or not isinstance(value, hint) or wrong_bool:
            return self._wrong(value, where, _EXPECTED.get(hint, hint.__name__))
        return value

    def _wrong(self, value: Any, where: str, expected: str) -> None:
        found = repr(value)
        found = found if len(found) <= 40 else found[:37] + "..."
        place = where or "the top level"
        self.problems.append(f"{place} is {found} instead of {expected}")

    def _annotated(self, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
        hint, *extras = arguments
        found = self.decode(hint, value, where)
        for each in extras:
            if isinstance(each, Range) and found is not None and not each.holds(found):
                expected = f"{_EXPECTED.get(hint, hint.__name__)}, {each.expected}"
                return self._wrong(value, where, expected)
        return found

    def _choice(self, options: tuple[Any, ...], value: Any, where: str) -> Any:
        is_bool = isinstance(value, bool)  # True == 1
        if any(value == o and isinstance(o, bool) == is_bool for o in options):
            return value
        return self._wrong(value, where, "one of " + ", ".join(map(repr, options)))

    def _tuple(self, inner: tuple[Any, ...], value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(value, where, "a list")
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = inner[:1] * len(value)
        if len(inner) != len(value):
            return self._wrong(value, where, f"a list of {len(inner)} items")
        pairs = zip(inner, value, strict=True)
        return tuple(
            self.decode(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(pairs)
        )

    def _union(self, options: tuple[Any, ...], value: Any, where: str) -> Any:
        if value is None and type(None) in options:
            return None
        options = tuple(o for o in options if o is not type(None))
        records: list[Any] = [o for o in options if dataclasses.is_dataclass(o)]
        classes = {each.__name__: each for each in records}
        if len(options) > 1 and classes and isinstance(value, Mapping):
            tag = value.get("type", next(iter(classes)) if len(classes) == 1 else None)
            chosen = self._choice((*classes,), tag, _at(where, "type"))
            return chosen and self._dataclass(classes[chosen], value, where)
        tried = [_Decoder(self.lenient) for _ in options]
        for decoder, option in zip(tried, options, strict=True):
            found = decoder.decode(option, value, where)
            if not decoder.problems:
                return found
        self.problems += [problem for each in tried for problem in each.problems]
        return None

    def _dataclass(self, cls: Any, value: Any, where: str) -> Any:
        fields = {each.name: each for each in dataclasses.fields(cls) if each.init}
        needed = {name for name, each in fields.items() if _is_required(each)}
        hints = _hints(cls)
        nullable = all(type(None) in typing.get_args(hints[name]) for name in needed)
        if value is None and self.lenient and nullable:
            return cls(**dict.fromkeys(needed))
        if not isinstance(value, Mapping):
            return self._wrong(value, where, "an object")
        count = len(self.problems)
        tag = value.get("type", cls.__name__)
        if "type" not in fields and tag != cls.__name__:
            self._wrong(tag, _at(where, "type"), repr(cls.__name__))
        given = {
            key: item for key, item in value.items() if key != "type" or key in fields
        }
        self.problems += [
            f"{_at(where, k)} is missing" for k in fields if k in needed - given.keys()
        ]
        unknown = given.keys() - fields.keys()
        if unknown and not self.lenient:
            known = ", ".join(sorted(fields))
            self.problems += [
                f"{_at(where, k)} is unknown; known are {known}"
                for k in sorted(unknown)
            ]
        found = {
            name: self.decode(hints[name], item, _at(where, name))
            for name, item in given.items()
            if name in fields
        }
        return cls(**found) if len(self.problems) == count else None


def check_flags(config: Any) -> None:
    """Check every value of a command's flags, before anything is read or written.

    A number must be in the `Range` of its annotation, and finite or of 32 bits without
    one; a path must be one that the system can open.

    Raises:
      InputError: all flags that are wrong (the first six).
    """
    refuse("", [problem for flag in flags(config) for problem in _flag_problems(*flag)])


def flags(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any, Any]]:
    """The flags of a command: name, type hint and value of each field."""
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        hint, value = hints[field.name], getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            extras = getattr(hint, "__metadata__", ())
            unnamed = any(getattr(each, "name", None) == "" for each in extras)
            yield from flags(value, prefix if unnamed else f"{name}.")
        else:
            yield name, hint, value


def _flag_problems(name: str, hint: Any, value: Any) -> Iterator[str]:
    """What is wrong with one flag."""
    if isinstance(value, tuple):
        inner = next((h for h in typing.get_args(hint) if h is not Ellipsis), Any)
        for each in value:
            yield from _flag_problems(name, inner, each)
        return
    ranges = [x for x in _extras(hint) if isinstance(x, Range)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        usual = _INTEGER if isinstance(value, int) else _FINITE
        wrong = [each for each in (*ranges, usual) if not each.holds(value)]
        if wrong:
            yield f"{name} is {str(value)[:40]}, expected {wrong[0].expected}"
    if isinstance(value, str | Path):
        wrong = _text_problem(str(value))
        if not wrong and (isinstance(value, Path) or INPUT in _extras(hint)):
            wrong = _path_problem(str(value))
        if wrong:
            yield f"{name}: {wrong}"


_INTEGER = Range("an integer of 32 bits", lambda x: abs(x) < 2**31)
_FINITE = Range("a finite number", math.isfinite)
_LONGEST_TEXT = 4096


def _extras(hint: Any) -> list[Any]:
    """Annotations of a hint, and of those inside it."""
    own = list(getattr(hint, "__metadata__", ()))
    return own + [x for inner in typing.get_args(hint) for x in _extras(inner)]


def _text_problem(value: str) -> str:
    if len(value) > _LONGEST_TEXT:
        return f"{len(value)} characters, expected at most {_LONGEST_TEXT}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{value!r} is not UTF-8; rename it"
    return "a null character, expected text" if "\0" in value else ""


def _path_problem(value: str) -> str:
    try:
        os.stat(value)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"{value[:40]}... is too long for a path; expected a shorter one"
        if error.errno == errno.ELOOP:
            return f"{value} is a link to itself; expected one to a file or folder"
    return ""


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
