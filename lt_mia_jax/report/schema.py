"""What a parsed JSON value must look like, and everything that is wrong with it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Fields:
    """An object with at least these keys, unless optional; further keys are free."""

    required: Mapping[str, "Schema"]
    optional: Mapping[str, "Schema"]

    def __init__(
        self,
        required: Mapping[str, "Schema"],
        optional: Mapping[str, "Schema"] | None = None,
    ):
        object.__setattr__(self, "required", required)
        object.__setattr__(self, "optional", optional or {})


@dataclass(frozen=True)
class ListOf:
    """An array whose items all follow one schema."""

    item: "Schema"
    empty: bool = True


@dataclass(frozen=True)
class MapOf:
    """An object with free keys whose values all follow one schema."""

    value: "Schema"


@dataclass(frozen=True)
class Maybe:
    """A value that may be null."""

    schema: "Schema"


@dataclass(frozen=True)
class OneOf:
    """One of a few literal values."""

    values: tuple[Any, ...]


Number = float | int
"""A number as JSON gives it."""
Plain = Literal["text", "number", "count", "truth", "anything"]
Schema = Fields | ListOf | MapOf | Maybe | OneOf | Plain

_WANTED = {
    "text": "a string",
    "number": "a finite number",
    "count": "an integer >= 0",
    "truth": "true or false",
}


def problems(value: Any, schema: Schema, where: str = "") -> Iterator[str]:
    """Everything in `value` that breaks `schema`, as phrases that name the place."""
    match schema:
        case Maybe(inner):
            if value is not None:
                yield from problems(value, inner, where)
        case Fields(required, optional):
            if not isinstance(value, dict):
                yield _wrong(where, value, "an object")
                return
            for key, inner in required.items():
                if key in value:
                    yield from problems(value[key], inner, _join(where, key))
                else:
                    yield f"{_join(where, key)} is missing"
            for key, inner in optional.items():
                if key in value:
                    yield from problems(value[key], inner, _join(where, key))
        case MapOf(inner):
            if not isinstance(value, dict):
                yield _wrong(where, value, "an object")
                return
            for key, item in value.items():
                yield from problems(item, inner, _join(where, key))
        case ListOf(inner, empty):
            if not isinstance(value, list):
                yield _wrong(where, value, "a list")
                return
            if not value and not empty:
                yield f"{where} is empty"
            for index, item in enumerate(value):
                yield from problems(item, inner, f"{where}[{index}]")
        case OneOf(values):
            if value not in values or isinstance(value, bool):
                yield _wrong(where, value, "one of " + ", ".join(map(repr, values)))
        case _:
            if not _plain(value, schema):
                yield _wrong(where, value, _WANTED[schema])


def _plain(value: Any, kind: Plain) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "text":
            return isinstance(value, str)
        case "number":
            return number and math.isfinite(value)
        case "count":
            return number and isinstance(value, int) and value >= 0
        case "truth":
            return isinstance(value, bool)
        case "anything":
            return True


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _wrong(where: str, value: Any, wanted: str) -> str:
    found = repr(value)
    found = found if len(found) <= 40 else found[:37] + "..."
    return f"{where or 'the top level'} is {found} instead of {wanted}"
