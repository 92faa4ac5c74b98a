"""Weights of the original implementation, renamed and transposed to ours."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.attacks.learned.classifier_config import Architecture, ClassifierConfig
from lt_mia_jax.errors import InputError, capped


class _Source:
    """A state dict that remembers which keys were used and which were missing."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self.state = state
        self.used: set[str] = set()
        self.missing: list[str] = []

    def take(self, name: str) -> np.ndarray:
        if name not in self.state:
            self.missing.append(name)
            return np.zeros((0, 0), np.float32)
        self.used.add(name)
        return np.asarray(self.state[name], dtype=np.float32)

    def linear(self, name: str, separator: str = ".") -> Params:
        kernel = np.ascontiguousarray(self.take(f"{name}{separator}weight").T)
        return {"kernel": kernel, "bias": self.take(f"{name}{separator}bias")}

    def norm(self, name: str) -> Params:
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def finish(self) -> None:
        unused = sorted(set(self.state) - self.used)
        if self.missing or unused:
            raise InputError(
                "classifier weights do not fit the architecture: "
                f"missing {capped(self.missing)}; unused {capped(unused)}"
            )


def _stack(layers: list[Params]) -> Params:
    def stack(*leaves: np.ndarray) -> np.ndarray:
        # A missing weight is an empty placeholder; `finish` will name it.
        return np.stack(leaves) if len({a.shape for a in leaves}) == 1 else leaves[0]

    return jax.tree.map(stack, *layers)


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(m.group(1)) for m in found if m), default=-1)


def _architecture(state: Mapping[str, np.ndarray], length: int) -> Architecture:
    if any(name.startswith("encoder.") for name in state):
        return "transformer"
    if any(name.startswith("layers.") for name in state):
        return "pooled_transformer"
    if "linear.weight" in state:
        return "lr"
    if "mlp.0.weight" in state:
        wide = state["mlp.0.weight"].shape[1] % length == 0
        return "mlp" if wide else "mean_mlp"
    raise InputError(
        f"unknown classifier weights; found {capped(sorted(state))}, expected names "
        "that start with encoder., layers., linear. or mlp."
    )


def _trunk(source: _Source) -> Params:
    return {
        "proj": source.linear("proj"),
        "norm": source.norm("norm"),
        "head": {"hidden": source.linear("cls.0"), "output": source.linear("cls.3")},
    }


def _encoder_layer(source: _Source, i: int) -> Params:
    prefix = f"encoder.layers.{i}"
    return {
        "qkv": source.linear(f"{prefix}.self_attn.in_proj", "_"),
        "output": source.linear(f"{prefix}.self_attn.out_proj"),
        "norm1": source.norm(f"{prefix}.norm1"),
        "up": source.linear(f"{prefix}.linear1"),
        "down": source.linear(f"{prefix}.linear2"),
        "norm2": source.norm(f"{prefix}.norm2"),
    }


def _pooled_layer(source: _Source, i: int) -> Params:
    return {
        "up": source.linear(f"layers.{5 * i}"),
        "down": source.linear(f"layers.{5 * i + 3}"),
        "norm": source.norm(f"layers.{5 * i + 4}"),
    }


def _perceptron(source: _Source, names: list[str]) -> Params:
    return {f"dense_{i}": source.linear(name) for i, name in enumerate(names)}


def from_torch_state(
    state: Mapping[str, np.ndarray],
    *,
    heads: int = 8,
    length: int = 128,
    dropout: float = 0.05,
    architecture: Architecture | None = None,
) -> tuple[ClassifierConfig, Params]:
    """Configuration and parameters from weights under the original's names.

    Widths and the number of layers are read from the shapes. Heads, sequence length
    and dropout leave no trace in the weights and must be given where they differ.

    Args:
      state: numpy arrays by torch key, weights (outputs, inputs).
      heads: attention heads of the transformer.
      length: steps per sequence, needed to tell columns from steps in `lr`/`mlp`.
      dropout: recorded in the configuration; scoring does not use it.
      architecture: overrides the guess from the key names.

    Raises:
      InputError: listing all missing and all unused keys, or unknown architecture.

    Source: key names of the LT-MIA checkpoint (arXiv 2604.03199, released weights).
    """
    kind = architecture or _architecture(state, length)
    source = _Source(state)
    sizes: dict[str, Any] = {}
    match kind:
        case "transformer":
            count = max(1, _count(state, r"encoder\.layers\.(\d+)\."))
            params = _trunk(source)
            params["layers"] = _stack([_encoder_layer(source, i) for i in range(count)])
            params["pool"] = {
                "hidden": source.linear("attn_pool.0"),
                "output": source.linear("attn_pool.2"),
            }
        case "pooled_transformer":
            count = max(1, -(-_count(state, r"layers\.(\d+)\.") // 5))
            params = _trunk(source)
            params["layers"] = _stack([_pooled_layer(source, i) for i in range(count)])
        case "lr":
            params = _perceptron(source, ["linear"])
        case "mlp" | "mean_mlp":
            last = max(1, _count(state, r"mlp\.(\d+)\."))
            params = _perceptron(source, [f"mlp.{i}" for i in range(0, last, 3)])
    source.finish()
    if kind in ("transformer", "pooled_transformer"):
        inputs, width = params["proj"]["kernel"].shape
        count, _, ff = params["layers"]["up"]["kernel"].shape
        sizes = {"width": width, "layers": count, "feed_forward": ff}
    else:
        inputs = params["dense_0"]["kernel"].shape[0]
        if kind != "mean_mlp":
            inputs, rest = divmod(inputs, length)
            if rest:
                raise InputError(
                    f"{inputs * length + rest} flattened inputs are not a multiple of "
                    f"length {length}"
                )
        if kind != "lr":
            kernels = [params[f"dense_{i}"]["kernel"] for i in range(len(params))]
            sizes = {"hidden": tuple(k.shape[1] for k in kernels[:-1])}
    config = ClassifierConfig(
        architecture=kind,
        inputs=inputs,
        length=length,
        heads=heads,
        dropout=dropout,
        **sizes,
    )
    return config, params
