"""Correspondences between fields of a config.json and our settings, both ways.

A row reads its fields into a dict of settings and writes them back, so that one tuple
of rows describes a family for loading and for saving. Readers refuse values that would
change the logits and that we do not implement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from lt_mia_jax.checkpoints.hf_fields import ACTIVATION_NAMES, Fields, rope_fields
from lt_mia_jax.models.config import Rotary

Settings = dict[str, Any]
"""Names of `assembly.transformer` and its siblings with their values."""

Default = Any | Callable[[Settings], Any]
"""A value, or a function of the settings that earlier rows have read."""


@runtime_checkable
class Row(Protocol):
    """One correspondence."""

    def read(self, fields: Fields, settings: Settings, /) -> None:
        """Add settings; problems are collected in `fields`."""
        ...

    def write(self, settings: Settings, /) -> dict[str, Any]:
        """The fields that stand for these settings."""
        ...


@dataclass(frozen=True)
class Field:
    """One field, one setting (or several of one value)."""

    name: str
    setting: str | tuple[str, ...]
    kind: Literal["size", "number", "flag", "activation", "optional"]
    """`optional`: a number or null; absent is the default, null is None."""
    default: Default
    aliases: tuple[str, ...] = ()
    """Other names that versions of transformers used."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read the first name present, checked by kind."""
        default: Any = self.default
        if callable(default):
            default = default(settings)
        name = fields.first(self.name, *self.aliases)
        # Each kind is a method of `Fields`.
        value = getattr(fields, self.kind)(name, default)
        settings.update(dict.fromkeys(self._settings(), value))

    def write(self, settings: Settings) -> dict[str, Any]:
        """The field under its first name."""
        value = settings[self._settings()[0]]
        return {self.name: ACTIVATION_NAMES.get(value, value)}

    def _settings(self) -> tuple[str, ...]:
        return (self.setting,) if isinstance(self.setting, str) else self.setting


def size(name: str, setting: str, default: Default, *aliases: str) -> Field:
    """A positive integer."""
    return Field(name, setting, "size", default, aliases)


def number(name: str, setting: str | tuple[str, ...], default: float) -> Field:
    """A finite number."""
    return Field(name, setting, "number", default)


def flag(name: str, setting: str | tuple[str, ...], default: bool) -> Field:
    """True or false."""
    return Field(name, setting, "flag", default)


def activation(name: str, default: str) -> Field:
    """The activation, by its name in transformers."""
    return Field(name, "activation", "activation", default)


@dataclass(frozen=True)
class Custom:
    """Fields that say several things at once, read and written by functions."""

    read: Callable[[Fields, Settings], None]
    """Adds settings; problems are collected in the fields."""
    write: Callable[[Settings], dict[str, Any]]
    """The fields that stand for these settings."""


@dataclass(frozen=True)
class Choice:
    """One field whose values stand for values of a setting."""

    name: str
    setting: str
    options: tuple[tuple[Any, Any], ...]
    """(value in config.json, value of the setting); the first is the default, and of
    several that mean the same the first is written."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Look the value up."""
        value = fields.raw(self.name, self.options[0][0])
        for theirs, ours in self.options:
            if type(theirs) is type(value) and theirs == value:
                settings[self.setting] = ours
                return
        known = [theirs for theirs, _ in self.options]
        fields.problems.append(f"{self.name} = {value!r}, implemented are {known}")
        settings[self.setting] = self.options[0][1]

    def write(self, settings: Settings) -> dict[str, Any]:
        """Look the setting up; a value that has no name is left out."""
        for theirs, ours in self.options:
            if ours == settings[self.setting]:
                return {self.name: theirs}
        return {}


@dataclass(frozen=True)
class Only:
    """A field with one implemented value."""

    name: str
    value: Any
    default: Any = None
    """What it is when absent, if not that value."""
    also: tuple[Any, ...] = ()
    """Other values that mean the same."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Refuse all other values."""
        absent = self.value if self.default is None else self.default
        if fields.raw(self.name, absent) not in self.also:
            fields.require(self.name, self.value, absent)

    def write(self, settings: Settings) -> dict[str, Any]:
        """The value."""
        return {} if self.value is None else {self.name: self.value}


@dataclass(frozen=True)
class Same:
    """A field that must repeat a setting when it is given."""

    name: str
    setting: str

    def read(self, fields: Fields, settings: Settings) -> None:
        """Refuse another value."""
        expected = settings[self.setting]
        fields.require(self.name, expected, expected)

    def write(self, settings: Settings) -> dict[str, Any]:
        """The setting."""
        return {self.name: settings[self.setting]}


@dataclass(frozen=True)
class HeadDim:
    """The size of a head: a field if the family has one, else width / heads."""

    name: str | None = None
    default: int | None = None

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read or divide."""
        if self.name is not None and fields.raw(self.name, self.default) is not None:
            settings["head_dim"] = fields.size(self.name, self.default or 1)
            return
        settings["head_dim"] = fields.head_dim(settings["width"], settings["heads"])

    def write(self, settings: Settings) -> dict[str, Any]:
        """The field, if there is one."""
        return {} if self.name is None else {self.name: settings["head_dim"]}


@dataclass(frozen=True)
class Rope:
    """Rotary settings in the fields of all versions of transformers."""

    theta_name: str = "rope_theta"
    fraction_name: str | None = None
    """Older name of the rotated share; None when all of a head is rotated."""
    fraction: float = 1.0
    """The share when no field gives it."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read `rope_parameters`, `rope_scaling` or the older separate fields."""
        settings["position"] = fields.rotary(
            self.theta_name, fraction_name=self.fraction_name, fraction=self.fraction
        )

    def write(self, settings: Settings) -> dict[str, Any]:
        """Fields for versions 4 and 5: the latter prefers `rope_scaling` if given."""
        rotary = settings["position"]
        if not isinstance(rotary, Rotary):
            return {}
        rope = rope_fields(rotary)
        fields: dict[str, Any] = {self.theta_name: rotary.theta}
        if self.fraction_name is not None:
            rope["partial_rotary_factor"] = rotary.fraction
            fields[self.fraction_name] = rotary.fraction
        if rotary.scaling is not None:
            fields["rope_scaling"] = rope
        return {"rope_parameters": rope, **fields}


def read_rows(
    rows: Sequence[Row], fields: Fields, constants: Mapping[str, Any]
) -> Settings:
    """All settings: the family's constants and what its fields say."""
    settings: Settings = {}
    for row in rows:
        row.read(fields, settings)
    fixed = {
        name: value(settings) if callable(value) else value
        for name, value in constants.items()
    }
    return {**fixed, **settings}


def write_rows(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """All fields."""
    data: dict[str, Any] = {}
    for row in rows:
        data.update(row.write(settings))
    return data


def shortest_period(values: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest tuple whose repetition begins with `values`."""
    for length in range(1, len(values) + 1):
        if all(v == values[i % length] for i, v in enumerate(values)):
            return tuple(values[:length])
    return tuple(values)
