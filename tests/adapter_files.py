"""Adapters in PEFT's format, written with NumPy alone, and what they mean."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lt_mia_jax.checkpoints.safetensors import TensorReader

PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    base: Path | str,
    modules: list[str],
    *,
    rank: int = 2,
    alpha: float = 4,
    seed: int = 0,
    scale: float = 0.2,
    change=lambda config, tensors: None,
) -> dict[str, np.ndarray]:
    """A random adapter on `modules` of a base; returns what it adds, as stored.

    `change` edits its config and tensors before they are written.
    """
    rng = np.random.default_rng(seed)
    tensors, added = {}, {}
    with TensorReader(Path(base)) as reader:
        for module in modules:
            rows, columns = reader.shape(f"{module}.weight")
            conv1d = ".c_" in module  # stored (inputs, outputs)
            outputs, inputs = (columns, rows) if conv1d else (rows, columns)
            a = scale * rng.standard_normal((rank, inputs), np.float32)
            b = scale * rng.standard_normal((outputs, rank), np.float32)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
            delta = alpha / rank * np.float64(b) @ np.float64(a)
            added[f"{module}.weight"] = delta.T if conv1d else delta
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}),
        "bias": "none",
    }
    change(config, tensors)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return added


def modules_of(base: Path, *ends: str) -> list[str]:
    """Modules of a model whose names end so."""
    with TensorReader(base) as reader:
        names = [n.removesuffix(".weight") for n in reader.names if "weight" in n]
    return [name for name in names if name.endswith(ends)]
