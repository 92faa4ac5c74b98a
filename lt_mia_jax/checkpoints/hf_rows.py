"""Conversion of config.json fields to settings of `models.assembly` and back.

A row reads fields into a dict of settings and writes them back, so that one tuple of
rows describes a family for loading and for saving. Rows refuse values that change the
logits and are not implemented.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from lt_mia_jax.checkpoints.hf_fields import ACTIVATION_NAMES, Fields, rope_fields
from lt_mia_jax.models.config import Rotary

Settings = dict[str, Any]
"""Names of `assembly.transformer` and its siblings with their values."""

Default = Any | Callable[[Settings], Any]
"""A value, or a function of the settings that earlier rows have read."""


class Row(NamedTuple):
    """One or more fields and the settings for which they stand."""

    read: Callable[[Fields, Settings], None]
    """Adds settings; problems are collected in the fields."""
    write: Callable[[Settings], dict[str, Any]]
    """The fields that express these settings."""


def field(
    kind: Literal[
        "size", "count", "number", "epsilon", "factor", "flag", "activation", "optional"
    ],
    name: str,
    setting: str | tuple[str, ...],
    default: Default,
    *aliases: str,
) -> Row:
    """One field and one setting, or several settings of one value.

    `kind` is the method of `Fields` that reads and checks the value. `aliases` are
    names in other versions of transformers, which are read but not written.
    """
    names = (setting,) if isinstance(setting, str) else setting

    def read(fields: Fields, settings: Settings) -> None:
        absent: Any = default(settings) if callable(default) else default
        value = getattr(fields, kind)(fields.first(name, *aliases), absent)
        settings.update(dict.fromkeys(names, value))

    def write(settings: Settings) -> dict[str, Any]:
        value = settings[names[0]]
        return {name: ACTIVATION_NAMES.get(value, value)}

    return Row(read, write)


size = partial(field, "size")
"""A positive integer."""
count = partial(field, "count")
"""A number of layers, heads or taps."""
number = partial(field, "number")
"""A number of moderate size."""
epsilon = partial(field, "epsilon")
"""What a norm adds to a mean square."""
factor = partial(field, "factor")
"""A positive number of moderate size."""
flag = partial(field, "flag")
"""True or false."""


def activation(name: str, default: str) -> Row:
    """The activation, by its name in transformers."""
    return field("activation", name, "activation", default)


def choice(name: str, setting: str, *options: tuple[Any, Any]) -> Row:
    """One field whose values correspond to values of a setting.

    Options are (value in config.json, value of the setting). The first one is the
    default; of several that mean the same, the first one is written.
    """

    def read(fields: Fields, settings: Settings) -> None:
        value = fields.raw(name, options[0][0])
        for theirs, ours in options:
            if type(theirs) is type(value) and theirs == value:
                settings[setting] = ours
                return
        known = [theirs for theirs, _ in options]
        fields.problems.append(f"{name} = {value!r}, implemented are {known}")
        settings[setting] = options[0][1]

    def write(settings: Settings) -> dict[str, Any]:
        for theirs, ours in options:
            if ours == settings[setting]:
                return {name: theirs}
        return {}  # No value expresses this setting.

    return Row(read, write)


def only(name: str, value: Any, *also: Any) -> Row:
    """A field with one implemented value, and others that mean the same."""

    def read(fields: Fields, settings: Settings) -> None:
        if fields.raw(name, value) not in also:
            fields.require(name, value, value)

    return Row(read, lambda settings: {} if value is None else {name: value})


def unread(*names: str) -> Row:
    """Fields that change nothing in this family, whatever their values."""

    def read(fields: Fields, settings: Settings) -> None:
        for name in names:
            fields.raw(name)

    return Row(read, lambda settings: {})


def same(name: str, setting: str) -> Row:
    """A field that must repeat a setting when it is given."""

    def read(fields: Fields, settings: Settings) -> None:
        fields.require(name, settings[setting], settings[setting])

    return Row(read, lambda settings: {name: settings[setting]})


def head_dim(name: str | None = None, default: int | None = None) -> Row:
    """The size of a head: a field if the family has one, else width / heads."""

    def read(fields: Fields, settings: Settings) -> None:
        if name is not None and fields.raw(name, default) is not None:
            settings["head_dim"] = fields.size(name, default or 1)
            return
        settings["head_dim"], rest = divmod(settings["width"], settings["heads"])
        if rest:
            fields.problems.append(
                f"hidden size {settings['width']} is not divisible by "
                f"{settings['heads']} heads"
            )

    return Row(
        read, lambda settings: {} if name is None else {name: settings["head_dim"]}
    )


def rope(
    theta_name: str = "rope_theta",
    fraction_name: str | None = None,
    fraction: float = 1.0,
) -> Row:
    """Rotary settings in the fields of all versions of transformers.

    The names are older ones of the base and the rotated fraction (None: always 1);
    `fraction` is the default of the latter.
    """

    def read(fields: Fields, settings: Settings) -> None:
        settings["position"] = fields.rotary(theta_name, fraction_name, fraction)

    def write(settings: Settings) -> dict[str, Any]:
        rotary = settings["position"]
        if not isinstance(rotary, Rotary):
            return {}
        parameters = rope_fields(rotary)
        older: dict[str, Any] = {theta_name: rotary.theta}
        if fraction_name is not None:
            parameters["partial_rotary_factor"] = rotary.fraction
            older[fraction_name] = rotary.fraction
        # Version 5 of transformers prefers `rope_scaling` if it is given.
        if rotary.scaling is not None:
            older["rope_scaling"] = parameters
        return {"rope_parameters": parameters, **older}

    return Row(read, write)


def shortest_period(values: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest tuple whose repetition begins with `values`."""
    for length in range(1, len(values) + 1):
        if all(v == values[i % length] for i, v in enumerate(values)):
            return tuple(values[:length])
    return tuple(values)
