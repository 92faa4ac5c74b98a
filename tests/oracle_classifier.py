"""The classifiers in float64 NumPy, one sequence and one head at a time.

Reads the weights under the original's torch names, so that nothing here depends on how
the package stores parameters.
"""

import math
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]


def linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    weight = state[f"{name}.weight"].astype(np.float64)
    return x @ weight.T + state[f"{name}.bias"].astype(np.float64)


def layer_norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    rows = []
    for row in np.atleast_2d(x):
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append((row - mean) / math.sqrt(variance + 1e-5))
    out = np.array(rows).reshape(x.shape)
    return out * state[f"{name}.weight"] + state[f"{name}.bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def position(p: int, d: int) -> np.ndarray:
    out = np.zeros(d)
    for i in range(0, d, 2):
        angle = p * math.exp(-i * math.log(10000.0) / d)
        out[i], out[i + 1] = math.sin(angle), math.cos(angle)
    return out


def head(state: State, x: np.ndarray) -> float:
    return float(linear(state, "cls.3", relu(linear(state, "cls.0", x)))[0])


def attention(
    state: State, name: str, x: np.ndarray, valid: np.ndarray, heads: int
) -> np.ndarray:
    steps, d = x.shape
    size = d // heads
    weight = state[f"{name}.in_proj_weight"].astype(np.float64)
    bias = state[f"{name}.in_proj_bias"].astype(np.float64)
    query, key, value = (
        x @ weight[i * d : (i + 1) * d].T + bias[i * d : (i + 1) * d] for i in range(3)
    )
    mixed = np.zeros((steps, d))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for q in range(steps):
            scores = np.array(
                [query[q, part] @ key[s, part] / math.sqrt(size) for s in valid]
            )
            for weight_s, s in zip(softmax(scores), valid, strict=True):
                mixed[q, part] += weight_s * value[s, part]
    return linear(state, f"{name}.out_proj", mixed)


def transformer(
    state: State, features: np.ndarray, mask: np.ndarray, *, heads: int, layers: int
) -> np.ndarray:
    return np.array(
        [
            _transformer_row(state, f.astype(np.float64), m, heads, layers)
            for f, m in zip(features, mask, strict=True)
        ]
    )


def _transformer_row(
    state: State, features: np.ndarray, mask: np.ndarray, heads: int, layers: int
) -> float:
    valid = np.flatnonzero(mask)
    if len(valid) == 0:
        return math.nan
    x = layer_norm(state, "norm", linear(state, "proj", features))
    x = x + np.stack([position(p, x.shape[1]) for p in range(len(x))])
    for i in range(layers):
        name = f"encoder.layers.{i}"
        mixed = attention(state, f"{name}.self_attn", x, valid, heads)
        x = layer_norm(state, f"{name}.norm1", x + mixed)
        inner = relu(linear(state, f"{name}.linear1", x))
        x = layer_norm(
            state, f"{name}.norm2", x + linear(state, f"{name}.linear2", inner)
        )
    pooling = linear(state, "attn_pool.2", np.tanh(linear(state, "attn_pool.0", x)))
    weights = softmax(pooling[valid, 0])
    return head(state, weights @ x[valid])


def pooled_transformer(
    state: State, features: np.ndarray, mask: np.ndarray, *, layers: int
) -> np.ndarray:
    x = linear(state, "proj", masked_mean(features, mask))
    x = layer_norm(state, "norm", x)
    for i in range(layers):
        inner = relu(linear(state, f"layers.{5 * i}", x))
        x = linear(state, f"layers.{5 * i + 3}", inner)
        x = layer_norm(state, f"layers.{5 * i + 4}", x)
    return np.array([head(state, row) for row in x])


def perceptron(state: State, x: np.ndarray, names: list[str]) -> np.ndarray:
    for name in names[:-1]:
        x = relu(linear(state, name, x))
    return linear(state, names[-1], x)[:, 0]


def masked_mean(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            f[m.astype(bool)].astype(np.float64).sum(axis=0) / max(1, m.sum())
            for f, m in zip(features, mask, strict=True)
        ]
    )


def random_state(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]):
    """Weights under the given names; norm weights near 1 so that values stay sane."""
    state = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape) / math.sqrt(shape[-1])
        is_scale = len(shape) == 1 and name.endswith(".weight")
        state[name] = (values + is_scale).astype(np.float32)
    return state


def transformer_shapes(
    c: int, d: int, ff: int, layers: int
) -> dict[str, tuple[int, ...]]:
    shapes = {**_linear("proj", d, c), **_norm("norm", d)}
    for i in range(layers):
        name = f"encoder.layers.{i}"
        shapes |= {
            f"{name}.self_attn.in_proj_weight": (3 * d, d),
            f"{name}.self_attn.in_proj_bias": (3 * d,),
            **_linear(f"{name}.self_attn.out_proj", d, d),
            **_linear(f"{name}.linear1", ff, d),
            **_linear(f"{name}.linear2", d, ff),
            **_norm(f"{name}.norm1", d),
            **_norm(f"{name}.norm2", d),
        }
    pool = {**_linear("attn_pool.0", d // 2, d), **_linear("attn_pool.2", 1, d // 2)}
    return shapes | pool | _linear("cls.0", d, d) | _linear("cls.3", 1, d)


def pooled_shapes(c: int, d: int, ff: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {**_linear("proj", d, c), **_norm("norm", d)}
    for i in range(layers):
        shapes |= _linear(f"layers.{5 * i}", ff, d)
        shapes |= _linear(f"layers.{5 * i + 3}", d, ff)
        shapes |= _norm(f"layers.{5 * i + 4}", d)
    return shapes | _linear("cls.0", d, d) | _linear("cls.3", 1, d)


def perceptron_shapes(
    names: list[str], sizes: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(names):
        shapes |= _linear(name, sizes[i + 1], sizes[i])
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, d: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}
