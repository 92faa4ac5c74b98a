"""Low-rank adapters of our parameters as a directory that PEFT loads."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from lt_mia_jax.checkpoints.adapters.config import CONFIG, WEIGHTS, is_adapter
from lt_mia_jax.checkpoints.adapters.reader import matrix_outputs_first
from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hf_config import write_config
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.checkpoints.rules import Assignment, expand
from lt_mia_jax.files import read_json, write_atomic, write_json
from lt_mia_jax.models import LanguageModel, ModelConfig
from lt_mia_jax.trees import flatten

log = logging.getLogger(__name__)

_UNUSABLE = {"mamba": ("out_proj", "dt_proj")}
"""By model_type modules that PEFT refuses, or whose adapters transformers passes by:
`MambaMixer` takes the weight of `dt_proj` alone, and in its kernels that of both."""
_LAYER = re.compile(r".*?\.\d+\.(.+)")

Pairs = Mapping[str, tuple[Any, Any]]
"""Matrices (A, B) by path of a kernel, as `finetune.lora` makes them."""


class _Module(NamedTuple):
    """The adapter of one stored matrix."""

    a: np.ndarray
    """(times x rank, inputs)."""
    b: np.ndarray
    """(outputs, times x rank)."""
    times: int
    """Adapters of ours that stand in it: a fused matrix holds several kernels."""


def clear_adapter(directory: Path) -> None:
    """Remove the adapter of an earlier run, and its folder if nothing else is in it."""
    for name in (CONFIG, WEIGHTS):
        (directory / name).unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def save_adapter(
    directory: Path,
    config: ModelConfig,
    adapters: Pairs,
    *,
    base: str,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
) -> None:
    """Write adapters as PEFT does; its folder takes the place of an earlier one.

    Queries, keys and values that a family stores as one matrix become one adapter of
    three times the rank, with alpha raised alike. Where PEFT cannot express them,
    nothing is written and the log says why.

    Args:
      directory: gets adapter_config.json and adapter_model.safetensors.
      config: of the model.
      adapters: pairs (A, B) by path of a kernel, in host memory.
      base: directory or hub id of the model beside whose kernels they act.
      rank: inner size of all pairs.
      alpha: they are scaled by alpha / rank.
      dropout: that of their training; has no effect on the function.
    """
    clear_adapter(directory)
    if is_gguf(base) or is_adapter(folder := resolve(base)):
        log.warning("no adapter is written: PEFT cannot build on %s", base)
        return
    kind, _ = write_config(
        config, prefer=read_json(folder / "config.json").get("model_type")
    )
    shapes = flatten(LanguageModel(config).shapes())
    groups = expand(FAMILIES[kind].table(config), config, shapes)
    matrices = [
        each
        for group in groups
        for each in group
        if matrix_outputs_first(each) is not None
    ]
    modules = _modules(matrices, adapters, shapes)
    unusable = _UNUSABLE.get(kind, ("\0",))
    if any(name.endswith(unusable) for name in modules):
        log.warning("no adapter is written: PEFT cannot adapt %s of %s", unusable, kind)
        return
    tensors = {}
    for name, module in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = module.a
        tensors[f"base_model.model.{name}.lora_B.weight"] = module.b
    write_atomic(directory / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    targets, times = _targets(modules, [_name(each) for each in matrices])
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets,
        "rank_pattern": {name: n * rank for name, n in times.items()},
        "alpha_pattern": {name: n * alpha for name, n in times.items()},
        "bias": "none",
        "fan_in_fan_out": any(
            _name(each) in modules and not matrix_outputs_first(each)
            for each in matrices
        ),
        "inference_mode": True,
    }
    write_json(directory / CONFIG, content)
    log.info("wrote the adapter to %s", directory)


def _name(matrix: Assignment) -> str:
    """The module of a stored matrix."""
    return matrix.name.removesuffix(".weight")


def _modules(
    matrices: Sequence[Assignment], adapters: Pairs, shapes: Mapping[str, Any]
) -> dict[str, _Module]:
    """The adapters by module.

    A fused matrix gets the matrices A of its kernels below each other, and their
    matrices B as blocks beside each other, laid out as the kernels are.
    """
    found = {}
    for matrix in matrices:
        paths = [place.path for place in matrix.places]
        pairs = {
            slot: [
                np.asarray(x, np.float32)[matrix.places[slot].part]
                for x in adapters[path]
            ]
            for slot, path in enumerate(paths)
            if path in adapters
        }
        if not pairs:
            continue
        rank = next(iter(pairs.values()))[0].shape[-1]
        blocks = [
            np.zeros((len(pairs) * rank, shapes[path].shape[-1]), np.float32)
            for path in paths
        ]
        for n, (slot, (_, b)) in enumerate(pairs.items()):
            blocks[slot][n * rank : (n + 1) * rank] = b
        stored = matrix.operation.inverse(blocks)
        b = stored if matrix_outputs_first(matrix) else stored.T
        a = np.concatenate([a.T for a, _ in pairs.values()])
        found[_name(matrix)] = _Module(
            np.ascontiguousarray(a), np.ascontiguousarray(b), len(pairs)
        )
    return found


def _targets(
    modules: Mapping[str, _Module], names: Sequence[str]
) -> tuple[list[str], dict[str, int]]:
    """`target_modules`, and the multiples of the rank that are not one.

    Ends of names where they mean the adapted modules and no others of `names`.
    """
    ends = {name: m[1] if (m := _LAYER.fullmatch(name)) else name for name in modules}
    dotted = tuple(f".{end}" for end in ends.values())
    meant = {n for n in names if n in ends.values() or n.endswith(dotted)}
    times: dict[str, set[int]] = {}
    for name, end in ends.items():
        times.setdefault(end, set()).add(modules[name].times)
    if meant != set(modules) or any(len(each) > 1 for each in times.values()):
        ends = {name: name for name in modules}
    found = {end: modules[name].times for name, end in ends.items()}
    return sorted(found), {end: n for end, n in found.items() if n > 1}
