"""Loading and saving of parameters by a table of tensor names.

A table names every stored tensor, with `{i}` for the layer and `{h}` for a head. This
module maps layers to periods, slots and tail blocks.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from lt_mia_jax.checkpoints.safetensors import Tensor
from lt_mia_jax.checkpoints.transforms import Operation, Shape
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.models.config import ModelConfig, Tied

logger = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes of names in models saved from `torch.compile` or a data-parallel wrapper."""


@runtime_checkable
class Reader(Protocol):
    """Named tensors of one checkpoint."""

    origin: Path
    """The file to name in messages."""

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        ...

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> str:
        """The stored type's own name."""
        ...

    def real(self, name: str) -> bool:
        """Whether the tensor is floating point and not quantized."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor."""
        ...


class Rule(NamedTuple):
    """One stored tensor (one per layer if the name has `{i}`) and its leaves."""

    name: str
    leaves: tuple[str, ...]
    operation: Operation
    mixer: type | None = None
    """Only for layers with this class of mixer."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Names of all tensors of a checkpoint family."""

    rules: tuple[Rule, ...]
    """Rules whose leaves a model does not have (such as absent biases) are skipped."""
    prefix: str
    """Prefix of names that decoders saved without a head omit."""
    token_embedding: str
    """Name of the token embedding."""
    heads: tuple[str, ...]
    """Names of the output matrix; the first is written, all are read."""
    ignored: tuple[str, ...] = ()
    """Globs of stored buffers that are not parameters."""


class Place(NamedTuple):
    """A leaf, and the index of its part that one stored tensor fills."""

    path: str
    part: tuple[int, ...]
    """Layer in the stack, then head; empty for the whole leaf."""


class Assignment(NamedTuple):
    """One stored tensor with the places that it fills."""

    name: str
    places: tuple[Place, ...]
    operation: Operation


def part_name(place: Place) -> str:
    """The name of one layer's part of a parameter.

    It is the path with the index of the part behind its first component, so what reads
    the role of a parameter from its path reads it from the name too.

    Example:
      >>> from lt_mia_jax.checkpoints.rules import Place, part_name
      >>> part_name(Place("periods/slot_0/mixer/output/kernel", (3,)))
      'periods[3]/slot_0/mixer/output/kernel'
    """
    first, separator, rest = place.path.partition("/")
    index = f"[{','.join(map(str, place.part))}]" if place.part else ""
    return f"{first}{index}{separator}{rest}"


def locate(config: ModelConfig, layer: int) -> tuple[str, int | None]:
    """Path prefix and stacked row of a layer's parameters."""
    period, slot = divmod(layer, len(config.pattern))
    if period < config.periods:
        return f"periods/slot_{slot}/", period
    return f"tail_{slot}/", None


def expand(
    table: Table, config: ModelConfig, shapes: Mapping[str, Any]
) -> list[list[Assignment]]:
    """Every stored tensor of a model, grouped by rule.

    Together they fill each part of the leaves, given by path as arrays or shapes, once.
    """
    groups = [_expand_rule(rule, config, shapes) for rule in table.rules]
    filled = [p for group in groups for a in group for p in a.places]
    assert len(filled) == len(set(filled)), "two rules fill one leaf"
    covered = {place.path for place in filled}
    assert covered == set(shapes), f"no rule for {sorted(set(shapes) - covered)}"
    return [group for group in groups if group]


def _expand_rule(
    rule: Rule, config: ModelConfig, shapes: Mapping[str, Any]
) -> list[Assignment]:
    layered = "{i}" in rule.name
    group = []
    for layer in range(config.layers if layered else 1):
        mixer = config.pattern[layer % len(config.pattern)].mixer
        if rule.mixer is not None and not isinstance(mixer, rule.mixer):
            continue
        prefix, row = locate(config, layer) if layered else ("", None)
        index = () if row is None else (row,)
        present = [prefix + leaf in shapes for leaf in rule.leaves]
        if not any(present):
            continue
        assert all(present), f"{rule.name} fills only some of its leaves"
        name = rule.name.replace("{i}", str(layer))
        heads = [()]
        if "{h}" in name:
            count = shapes[prefix + rule.leaves[0]].shape[len(index)]
            heads = [(head,) for head in range(count)]
        for head in heads:
            places = tuple(Place(prefix + leaf, index + head) for leaf in rule.leaves)
            own = name.replace("{h}", str(head[0])) if head else name
            group.append(Assignment(own, places, rule.operation))
    return group


def check_sizes(reader: Reader, config: ModelConfig) -> None:
    """Refuse a model that cannot be in the file, before anything of it is built.

    Raises:
      InputError: more layers than tensors, or an embedding larger than all of them.
    """
    shapes = [reader.shape(name) for name in reader.names]
    stored, wanted = sum(map(math.prod, shapes)), config.vocab_size * config.token_width
    wrong = []
    if config.layers > len(shapes):
        wrong.append(f"{config.layers} layers in {len(shapes)} tensors")
    if wanted > stored:
        table = f"{config.vocab_size} x {config.token_width}"
        wrong.append(f"an embedding of {table} in {stored} numbers")
    if wrong:
        raise _mismatch(reader, "; ".join(wrong))


def _mismatch(reader: Reader, what: str) -> InputError:
    return InputError(
        f"{reader.origin} does not match its config.json: {what}. Use the config.json "
        "that was saved with these weights"
    )


def load(
    reader: Reader,
    table: Table,
    config: ModelConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    put: Callable[[str, np.ndarray], Any],
) -> dict[str, Any]:
    """Complete leaves by path, in the dtypes of `shapes`, placed by `put`.

    Reads one tensor at a time; host memory peaks at the stacked leaves of one rule.

    Raises:
      InputError: missing, unexpected or mis-shaped tensors, types other
        than floating point, NaN or infinite weights, or a head that contradicts tying.
    """
    groups = expand(table, config, shapes)
    stored = stored_names(reader, table, config, shapes)
    leaves: dict[str, Any] = {}
    broken: list[str] = []
    for group in groups:
        stacked: dict[str, np.ndarray] = {}
        for assignment in group:
            for place in assignment.places:
                if place.path not in stacked:
                    shape = shapes[place.path]
                    stacked[place.path] = np.empty(shape.shape, shape.dtype)
            tensor = reader.read(stored[assignment.name])
            if not finite(tensor):
                broken.append(stored[assignment.name])
            parts = assignment.operation.forward(tensor)
            for place, part in zip(assignment.places, parts, strict=True):
                leaf = stacked[place.path]
                leaf[place.part or ...] = part.astype(leaf.dtype, copy=False)
        # One at a time, so that each host array is freed before the next is placed.
        for path in list(stacked):
            leaves[path] = put(path, stacked.pop(path))
    if broken:
        raise not_finite(reader.origin, broken)
    return leaves


def stored_names(
    reader: Reader,
    table: Table,
    config: ModelConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, str]:
    """The name in the file of each tensor of `expand`; errors as `load`, but NaN."""
    expected = {
        a.name: a.operation.stored_shape([_slice_shape(shapes, p) for p in a.places])
        for group in expand(table, config, shapes)
        for a in group
    }
    return _match_names(reader, table, config, expected)


def not_finite(origin: Path, names: Sequence[str]) -> InputError:
    """A refusal of tensors with NaN or infinite values."""
    return InputError(
        f"{origin}: NaN or infinite values in {len(names)} tensors: "
        f"{capped(names, ', ')}; the checkpoint is broken, get another copy or an "
        "earlier save"
    )


def finite(tensor: np.ndarray) -> bool:
    """Whether a stored tensor has only finite values."""
    return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())


def _slice_shape(shapes: Mapping[str, Any], place: Place) -> Shape:
    return tuple(shapes[place.path].shape)[len(place.part) :]


def wrapper_of(names: Sequence[str]) -> str:
    """What `torch.compile` and data-parallel wrappers put before all of the names.

    Example:
      >>> wrapper_of(["module._orig_mod.a.weight", "module._orig_mod.b.weight"])
      'module._orig_mod.'
      >>> wrapper_of(["module.a.weight", "b.weight"])
      ''
    """
    found = ""
    while names and (
        more := next(
            (w for w in WRAPPERS if all(n.startswith(found + w) for n in names)), None
        )
    ):
        found += more
    return found


def _match_names(
    reader: Reader, table: Table, config: ModelConfig, expected: Mapping[str, Shape]
) -> dict[str, str]:
    """Stored name of each expected tensor."""
    stored: dict[str, str] = {}
    unexpected: list[str] = []
    tied_heads: list[str] = []
    wrapper = wrapper_of(reader.names)
    if wrapper:
        logger.info("%s: names start with %s; left out", reader.origin, wrapper)
    for full in reader.names:
        name = full.removeprefix(wrapper)
        canonical = name if name in expected else f"{table.prefix}{name}"
        if name in table.heads:
            canonical = table.heads[0]
        if canonical in expected and canonical not in stored:
            stored[canonical] = full
        elif name in table.heads and isinstance(config.head, Tied):
            tied_heads.append(full)
        elif not any(fnmatchcase(f"{table.prefix}{name}", g) for g in table.ignored):
            unexpected.append(full)
    missing = [name for name in expected if name not in stored]
    misshaped = [
        f"{name} is {list(reader.shape(name))} instead of {list(expected[canonical])}"
        for canonical, name in stored.items()
        if reader.shape(name) != tuple(expected[canonical])
    ]
    if missing or unexpected or misshaped:
        raise _mismatch(
            reader,
            f"missing {_listed(missing)}; unexpected {_listed(unexpected)}; "
            f"mis-shaped {_listed(misshaped)}",
        )
    typed = [f"{n} ({reader.dtype(n)})" for n in stored.values() if not reader.real(n)]
    if typed:
        raise InputError(
            f"{reader.origin}: expected float32, float16 or bfloat16 tensors, found "
            f"{capped(typed, ', ')}; quantized checkpoints cannot be read, use the "
            "original weights"
        )
    _check_tied_heads(reader, stored[table.token_embedding], tied_heads)
    return stored


def _listed(names: list[str]) -> str:
    return capped(names) if names else "none"


def _check_tied_heads(reader: Reader, embedding: str, heads: list[str]) -> None:
    for head in heads:
        same = reader.shape(head) == reader.shape(embedding)
        if not (same and np.array_equal(reader.read(head), reader.read(embedding))):
            raise InputError(
                f"{reader.origin}: {head} differs from {embedding} although "
                "tie_word_embeddings is true; set it to false in config.json if the "
                "model has a head of its own, else remove the tensor"
            )


def export(
    table: Table,
    config: ModelConfig,
    shapes: Mapping[str, Any],
    read: Callable[[Place], Any],
) -> Iterator[Tensor]:
    """Every stored tensor; its parts are read when `make` is called.

    `shapes` are the leaves, by path, as arrays or shapes.
    """
    for group in expand(table, config, shapes):
        for assignment in group:
            shape = assignment.operation.stored_shape(
                [_slice_shape(shapes, place) for place in assignment.places]
            )
            dtype = np.dtype(shapes[assignment.places[0].path].dtype)
            make = partial(_stored, assignment, read)
            yield Tensor(assignment.name, tuple(shape), dtype, make)


def _stored(assignment: Assignment, read: Callable[[Place], Any]) -> np.ndarray:
    leaves = [np.asarray(read(place)) for place in assignment.places]
    return assignment.operation.inverse(leaves)
