"""Save and load interventions beside the weights they act on: JSON and safetensors.

`intervention.json` describes the parts of an intervention and holds the SHA-256 of
`intervention.safetensors`, which holds the arrays. Prompt lengths belong to a batch and
are not stored; `placement.prompted` sets them.
"""

import math
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import (
    fingerprint,
    open_regular,
    read_json,
    write_atomic,
    write_json,
)
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import AtLayers, ByLayer, Composed, OnPrompt
from lt_mia_jax.trees import node_of
from lt_mia_jax.unlearning.interventions.edits import InputAware, Projection, Steering
from lt_mia_jax.unlearning.interventions.gates import GatedRotation

DESCRIPTION = "intervention.json"
TENSORS = "intervention.safetensors"
FORMAT = 1
KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        AtLayers,
        ByLayer,
        Composed,
        GatedRotation,
        InputAware,
        OnPrompt,
        Projection,
        Steering,
    )
}
_OF_A_BATCH = "lengths"
_OF_THE_WIDTH = ("vector", "vectors", "centroids", "factor", "direction", "rows")


def save_intervention(directory: Path | str, intervention: Intervention | None) -> None:
    """Write an intervention beside a model; `load_intervention` reads it.

    After an interrupted save the old one is loaded, or loading is refused. None deletes
    the intervention of an earlier model in that directory.

    Raises:
      InputError: a part, such as a plain function, cannot be stored.
    """
    if intervention is None:
        for name in (DESCRIPTION, TENSORS):
            (Path(directory) / name).unlink(missing_ok=True)
        return
    tensors: dict[str, np.ndarray] = {}
    content = {"format": FORMAT, "intervention": _describe(intervention, "", tensors)}
    data = dump_tensors(tensors)
    write_atomic(Path(directory) / TENSORS, data)
    write_json(Path(directory) / DESCRIPTION, content | {"sha256": fingerprint(data)})


def has_intervention(directory: Path | str) -> bool:
    """Whether the model in a directory comes with an intervention."""
    return any((Path(directory) / name).is_file() for name in (DESCRIPTION, TENSORS))


def load_intervention(
    directory: Path | str, model: ModelConfig | None = None
) -> Intervention | None:
    """The intervention beside a model; None if there is none.

    The directory need not exist. With a model, the intervention must fit it.

    Raises:
      InputError: a file is missing, broken or changed, or fits another model.
    """
    directory = Path(directory)
    if not has_intervention(directory):
        return None
    path, tensor_file = directory / DESCRIPTION, directory / TENSORS
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected an object with format {FORMAT}; unlearn again with this "
            "version"
        )
    try:
        with open_regular(tensor_file) as file:
            data = file.read()
        tensors = load_tensors(data)
    except InputError:
        raise
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{tensor_file}: not readable ({error})") from error
    if fingerprint(data) != content.get("sha256"):
        raise InputError(
            f"{tensor_file}: not what {DESCRIPTION} describes (SHA-256 differs)"
            "; copy both again, or unlearn again"
        )
    try:
        made = _build(content.get("intervention"), tensors)
        if type(made).__name__ not in KINDS:
            raise InputError("it describes no intervention")
        if model is not None:
            _check_fit(made, model)
    except InputError as error:
        raise InputError(f"{path}: {error}; unlearn again") from error
    return made


def _describe(node: Any, where: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(node, bool | int | str) or node is None:
        return node
    if isinstance(node, float) and math.isfinite(node):
        return node
    if isinstance(node, tuple):
        return [_describe(x, f"{where}{i}.", tensors) for i, x in enumerate(node)]
    if isinstance(node, np.ndarray | np.generic | jax.Array):
        name = where.removesuffix(".")
        tensors[name] = np.asarray(node, order="C")
        return {"tensor": name}
    kind = type(node).__name__
    if KINDS.get(kind) is not type(node) or not is_dataclass(node):
        raise InputError(
            f"an intervention with a {kind} cannot be stored; expected parts among "
            f"{', '.join(KINDS)}"
        )
    names = [field.name for field in fields(node) if field.name != _OF_A_BATCH]
    parts = {n: _describe(getattr(node, n), f"{where}{n}.", tensors) for n in names}
    return {"kind": kind, **parts}


def _build(described: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(described, list):
        return tuple(_build(x, tensors) for x in described)
    if not isinstance(described, dict):
        return described
    if set(described) == {"tensor"}:
        found = tensors.get(str(described["tensor"]))
        if found is None:
            raise InputError(f"no tensor {described['tensor']!r} in {TENSORS}")
        if not np.isfinite(found).all():
            raise InputError(f"tensor {described['tensor']!r} is not finite")
        return found
    kind = described.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"found kind {kind!r}, expected one of {', '.join(KINDS)}")
    known = {f.name: f for f in fields(KINDS[kind]) if f.name != _OF_A_BATCH}
    given = set(described) - {"kind"}
    missing = {n for n, f in known.items() if f.default is MISSING} - given
    if missing or given - set(known):
        raise InputError(f"{kind} has fields {sorted(given)}, expected {sorted(known)}")
    values = {name: field.default for name, field in known.items()}
    values |= {name: _build(described[name], tensors) for name in given}
    if _OF_A_BATCH in (field.name for field in fields(KINDS[kind])):
        values[_OF_A_BATCH] = None
    return node_of(KINDS[kind], values)


def _check_fit(made: Any, model: ModelConfig) -> None:
    """Check that vectors have the model's width and that the layers exist."""
    wrong = []
    for node in _nodes(made):
        for name, value in vars(node).items():
            shape = np.shape(value)
            if name in _OF_THE_WIDTH and shape[-1:] != (model.width,):
                found = f"{name} is {list(shape)}"
                wrong.append(f"{found}, the model's width is {model.width}")
            if name == "layers" and np.max(value, initial=0) > model.layers:
                numbers = np.asarray(value).tolist()
                wrong.append(f"layers are {numbers}, the model has {model.layers}")
    if wrong:
        raise InputError(f"it fits another model ({'; '.join(wrong)})")


def _nodes(made: Any) -> list[Any]:
    """An intervention and all its parts."""
    if isinstance(made, tuple):
        return [node for part in made for node in _nodes(part)]
    if type(made).__name__ not in KINDS:
        return []
    return [made, *(node for part in vars(made).values() for node in _nodes(part))]
