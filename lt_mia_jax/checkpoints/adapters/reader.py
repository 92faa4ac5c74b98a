"""A base's tensors with an adapter merged into them, one tensor at a time."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.checkpoints.adapters.config import (
    CONFIG,
    WEIGHTS,
    AdapterConfig,
    read_adapter_config,
)
from lt_mia_jax.checkpoints.rules import Assignment, Reader, Table, wrapper_of
from lt_mia_jax.checkpoints.safetensors import TensorReader
from lt_mia_jax.checkpoints.transforms import Shape
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.models.config import ModelConfig, Tied

_WRAPPERS = re.compile(
    r"^(base_model\.model\.)|(?<![^.])(_orig_mod|base_layer|modules_to_save"
    r"(\.default)?)\."
)
"""What PEFT and torch.compile add to the names of a model's own tensors."""
_MATRIX = re.compile(
    r"(.+)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?"
)


class Matrices(NamedTuple):
    """Stored names of what one module is changed by."""

    a: str
    """(rank, inputs)."""
    b: str
    """(outputs, rank)."""
    magnitude: str | None
    """(outputs,), of DoRA alone."""


class Adapter:
    """An adapter directory: its settings, and its tensors by the base's names.

    Raises:
      InputError: files are missing, broken, pickled, or not implemented.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.config: AdapterConfig = read_adapter_config(directory)
        self.path = directory / WEIGHTS
        self.reader = TensorReader(directory, single=WEIGHTS)
        self.replaced: dict[str, str] = {}
        """Stored names of tensors that come whole, by name in the base."""
        self.matrices: dict[str, Matrices] = {}
        """What is added to the weight of a module."""
        self._sort()

    def _sort(self) -> None:
        parts: dict[str, dict[str, str]] = {}
        for name in self.reader.names:
            own = _WRAPPERS.sub("", name)
            if match := _MATRIX.fullmatch(own):
                parts.setdefault(match[1], {})[match[2]] = name
            else:
                self.replaced[own] = name
        broken = [module for module, found in parts.items() if not found.keys() >= _AB]
        typed = [n for n in self.reader.names if not self.reader.real(n)]
        if broken or typed:
            raise self.mismatch(
                f"without both matrices: {_list(broken)}; not floating point: "
                f"{_list(typed)}"
            )
        for module, found in parts.items():
            self.matrices[module] = Matrices(
                found["A"], found["B"], found.get("magnitude_vector")
            )

    @property
    def files(self) -> list[Path]:
        """The files that decide what the adapter does."""
        return [self.directory / CONFIG, self.path]

    def mismatch(self, what: str) -> InputError:
        """A refusal of files that do not fit."""
        return InputError(
            f"{self.path} does not match {CONFIG} and "
            f"its base: {what}. Pass the base that it was trained on, with both files "
            "as PEFT saved them"
        )

    def read(self, name: str) -> np.ndarray:
        """A stored tensor in float32.

        Raises:
          InputError: NaN or infinite values.
        """
        found = self.reader.read(name).astype(np.float32)
        if not np.isfinite(found).all():
            raise InputError(
                f"{self.path}: NaN or infinite values in {name}; the adapter is "
                "broken, get another copy or an earlier save"
            )
        return found

    def fields(self, table: Table, config: ModelConfig) -> dict[str, Any]:
        """Fields of the base's config.json that the adapter changes.

        A tied head stays as it was when the embedding alone is adapted or saved, and
        an embedding that was resized brings its own number of rows.
        """
        embedding = table.token_embedding
        changed: dict[str, Any] = {}
        if (name := self.replaced.get(embedding)) is not None:
            changed["vocab_size"] = self.reader.shape(name)[0]
        module = _module(embedding)
        heads = {_module(name) for name in table.heads}
        own = bool(heads & self.matrices.keys()) or any(map(self.config.saves, heads))
        apart = module in self.matrices or self.config.saves(module)
        if isinstance(config.head, Tied) and (own or apart):
            if self.config.tied:
                raise InputError(
                    f"{self.directory / CONFIG}: ensure_weight_tying with a trained "
                    "embedding is not implemented, for PEFT unties it when it loads; "
                    "merge the adapter while both are in memory, and pass that model"
                )
            changed["tie_word_embeddings"] = False
        return changed


_AB = {"A", "B"}


class AdaptedReader:
    """Tensors of a base with an adapter merged in, used like `TensorReader`.

    `assignments` are those of the adapted model. If it is `untied`, its head begins as
    the base's embedding.

    Raises:
      InputError: tensors of the adapter that match nothing in the base, modules that it
        names and has no tensors for, ranks other than its settings say.

    Source: LoRA, arXiv 2106.09685, section 4.1; rank-stabilized, arXiv 2312.03732;
    DoRA, arXiv 2402.09353, equation 5.
    """

    def __init__(
        self,
        base: Reader,
        adapter: Adapter,
        table: Table,
        assignments: Sequence[Assignment],
        *,
        untied: bool,
    ):
        self.origin, self._base, self._adapter = base.origin, base, adapter
        self._table = table
        self._outside = {table.token_embedding, *table.heads}
        self._operations = {each.name: each for each in assignments}
        wrapper = wrapper_of(base.names)
        self._stored = {
            self._canonical(name.removeprefix(wrapper)): name for name in base.names
        }
        if untied:
            embedding = self._stored.get(table.token_embedding)
            if embedding is not None:
                self._stored.setdefault(table.heads[0], embedding)
        self._replaced = {self._canonical(n): x for n, x in adapter.replaced.items()}
        self._matrices = {
            self._canonical(f"{module}.weight"): (module, found)
            for module, found in adapter.matrices.items()
        }
        self._check()

    def _canonical(self, name: str) -> str:
        """The name of a tensor in the table; unknown ones keep theirs."""
        if name in self._table.heads:
            return self._table.heads[0]
        full = f"{self._table.prefix}{name}"
        return full if full in self._operations else name

    def _check(self) -> None:
        config, known, table = self._adapter.config, self._operations, self._table
        # A tied head may come too, with the embedding; the loader compares them.
        unknown = [n for n in self._replaced if n not in known and n != table.heads[0]]
        unknown += [name for name in self._matrices if name not in known]
        foreign = [
            module
            for name, (module, _) in self._matrices.items()
            if not config.targeted(module, inner=name not in self._outside)
        ]
        absent = [
            _module(name)
            for name, each in known.items()
            if matrix_outputs_first(each) is not None
            and config.targeted(_module(name), inner=name not in self._outside)
            and name not in self._matrices
        ]
        if unknown or foreign or absent:
            raise self._adapter.mismatch(
                f"not in the base: {_list(unknown)}; not among target_modules: "
                f"{_list(foreign)}; without weights: {_list(absent)}"
            )
        wrong = [x for x in map(self._misshaped, self._matrices) if x is not None]
        if wrong:
            raise self._adapter.mismatch(f"mis-shaped: {_list(wrong)}")

    def _misshaped(self, name: str) -> str | None:
        module, found = self._matrices[name]
        rank = self._adapter.config.rank_of(module)
        first = matrix_outputs_first(self._operations[name])
        if first is None:
            return f"{module} is no matrix"
        shape = self.shape(name)
        outputs, inputs = shape if first else shape[::-1]
        expected = [(rank, inputs), (outputs, rank)]
        stored = [self._adapter.reader.shape(n) for n in (found.a, found.b)]
        if stored != expected:
            return f"{module} has {stored}, expected {expected}"
        if (found.magnitude is not None) != self._adapter.config.dora:
            return f"{module} has magnitudes without use_dora, or the reverse"
        if found.magnitude is not None and name == self._table.token_embedding:
            return f"{module} has magnitudes, not implemented for embeddings"
        return None

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted({*self._stored, *self._replaced})

    def shape(self, name: str) -> Shape:
        """Shape of a tensor."""
        if name in self._replaced:
            return self._adapter.reader.shape(self._replaced[name])
        return self._base.shape(self._stored[name])

    def dtype(self, name: str) -> str:
        """The stored type of the base's tensor; merged ones are float32."""
        if name in self._replaced or name in self._matrices:
            return "F32"
        return self._base.dtype(self._stored[name])

    def real(self, name: str) -> bool:
        """Whether the tensor is floating point and not quantized."""
        return name in self._replaced or self._base.real(self._stored[name])

    def read(self, name: str) -> np.ndarray:
        """The tensor, merged in float32 where the adapter changes it."""
        if name in self._replaced:
            weight = self._adapter.read(self._replaced[name])
        else:
            weight = self._base.read(self._stored[name])
        if name not in self._matrices:
            return weight
        module, found = self._matrices[name]
        a, b = self._adapter.read(found.a), self._adapter.read(found.b)
        first = matrix_outputs_first(self._operations[name])
        merged = weight.astype(np.float32)
        merged = merged if first else merged.T
        merged = merged + np.float32(self._adapter.config.scale_of(module)) * (b @ a)
        if found.magnitude is not None:
            length = np.linalg.norm(merged, axis=1, keepdims=True)
            merged *= self._adapter.read(found.magnitude).reshape(-1, 1) / length
        return merged if first else merged.T


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def matrix_outputs_first(assignment: Assignment) -> bool | None:
    """Whether a matrix is stored (outputs, inputs) or the reverse; None for others.

    An embedding is a matrix (inputs, outputs), with tokens as inputs.
    """
    leaves = {place.path.rsplit("/", 1)[-1] for place in assignment.places}
    if leaves == {"tokens"}:
        return False
    if leaves != {"kernel"}:
        return None
    inputs = -1
    shapes: list[Shape] = [(inputs, 2)] * len(assignment.places)
    return assignment.operation.stored_shape(shapes)[0] != inputs


def _list(names: Sequence[str]) -> str:
    return capped(names, ", ") or "none"
