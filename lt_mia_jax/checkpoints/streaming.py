"""Models on disk of which one stored tensor at a time is in memory."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_mia_jax.arrays import Array
from lt_mia_jax.checkpoints import rules
from lt_mia_jax.checkpoints.pretrained import Opened, Source, describe, opened
from lt_mia_jax.checkpoints.tokenizer import check_agreement
from lt_mia_jax.configs import to_dict
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.models import ModelConfig
from lt_mia_jax.sharding import parameter_shardings
from lt_mia_jax.trees import named_leaves, unflatten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StoredArray:
    """An array on disk, which `np.asarray` and `jnp.asarray` read, each time anew."""

    def __init__(
        self, like: Any, read: Callable[[], np.ndarray], put: Callable[[Any], Array]
    ):
        self.shape, self.dtype = tuple(like.shape), np.dtype(like.dtype)
        self._read, self._put = read, put

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its values on the host."""
        found = self._read()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __jax_array__(self) -> Array:
        """Its values on the devices."""
        return self._put(self._read())


class StoredModel:
    """A model whose parameters are read from its files when they are used.

    `stored` makes it.
    """

    def __init__(self, source: Source, files: Opened, mesh: Mesh | None):
        self.config: ModelConfig = source.config
        self._source = source
        self.shapes = files.shapes
        """Shapes of all parameters by path, in the order of the tree."""
        self._reader, self._mesh = files.reader, mesh
        layout = files.table, self.config, files.shapes
        found, groups = rules.stored_names(files.reader, *layout), rules.expand(*layout)
        self._filled = {
            place: (assignment, index, found[assignment.name])
            for group in groups
            for assignment in group
            for index, place in enumerate(assignment.places)
        }
        self.leaves_together = max(
            len({place.path for assignment in group for place in assignment.places})
            for group in groups
        )
        """Most parameters that one rule of the family's table fills, layer by layer."""
        self._last: tuple[str, tuple[np.ndarray, ...]] = ("", ())
        self._finite: set[str] = set()

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer; errors as `load_pretrained`."""
        return self._source.tokenizer()

    @property
    def parts(self) -> dict[str, StoredArray]:
        """Parameters of one layer each, by `rules.part_name`, in the tree's order."""
        order = {path: number for number, path in enumerate(self.shapes)}
        places = sorted(self._filled, key=lambda p: (order[p.path], p.part))
        return {rules.part_name(place): self._part(place) for place in places}

    @property
    def params(self) -> dict[str, Any]:
        """The tree of parameters; those of layers are stacked as they are read."""
        return unflatten({path: self._leaf(path) for path in self.shapes})

    def _part(self, place: rules.Place) -> StoredArray:
        leaf = self.shapes[place.path]
        shape = leaf.shape[len(place.part) :]
        like = jax.ShapeDtypeStruct(shape, leaf.dtype)
        return StoredArray(like, lambda: self._read(place), self._put)

    def _leaf(self, path: str) -> StoredArray:
        like = self.shapes[path]
        places = [place for place in self._filled if place.path == path]

        def read() -> np.ndarray:
            whole = np.empty(like.shape, like.dtype)
            for place in places:
                whole[place.part or ...] = self._read(place)
            return whole

        return StoredArray(like, read, self._put)

    def _put(self, array: np.ndarray) -> Array:
        shardings = self._mesh and parameter_shardings(array, self._mesh)
        return jax.device_put(array, shardings).block_until_ready()

    def _read(self, place: rules.Place) -> np.ndarray:
        assignment, index, name = self._filled[place]
        if self._last[0] != name:
            self._last = ("", ())  # not beside the next
            tensor = self._reader.read(name)
            if name not in self._finite and not rules.finite(tensor):
                raise rules.not_finite(self._reader.origin, [name])
            self._finite.add(name)
            self._last = name, assignment.operation.forward(tensor)
        return self._last[1][index].astype(self.shapes[place.path].dtype, copy=False)


@contextlib.contextmanager
def stored(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    base: str | Path | None = None,
) -> Iterator[StoredModel]:
    """A model in files; arguments and errors as `load_pretrained`.

    NaN and infinite values are refused when they are first read.

    Example:
      >>> import jax, numpy
      >>> from lt_mia_jax import LanguageModel, save_pretrained
      >>> from lt_mia_jax.models import gpt2_like
      >>> config = gpt2_like(64, width=16, layers=2, heads=2, context=8)
      >>> params = LanguageModel(config).init(jax.random.key(0))
      >>> save_pretrained("tiny", config, params)
      >>> with stored("tiny") as model:
      ...     found = model.parts["periods[1]/slot_0/mixer/output/kernel"]
      ...     numpy.asarray(found).shape
      (16, 16)
    """
    source = describe(path_or_id, base)
    with opened(source, dtype) as files:
        yield StoredModel(source, files, mesh)


def check_architecture(
    one: StoredModel, other: StoredModel, names: tuple[str, str], *, grown: bool = False
) -> None:
    """Refuse models of two architectures or vocabularies by an `InputError`.

    With `grown` the second may have a vocabulary of another size.
    """
    ignored: dict[str, Any] = {"dropout": one.config.dropout}
    if grown:
        ignored["vocab_size"] = one.config.vocab_size
    first = named_leaves(to_dict(one.config), ".")
    second = named_leaves(to_dict(dataclasses.replace(other.config, **ignored)), ".")
    differ = [
        f"{name} {second.get(name)} (expected {first.get(name)})"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]
    if differ:
        raise InputError(
            f"{names[1]}: of another architecture than {names[0]}: {capped(differ)}; "
            "give fine-tunes of one base model"
        )
    limit = min(one.config.vocab_size, other.config.vocab_size)
    check_agreement(one.tokenizer, other.tokenizer, names, limit)
