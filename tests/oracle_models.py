"""Language models from their definitions: float64 NumPy, loops over every axis."""

import math

import numpy as np

from lt_mia_jax.models.config import (
    Attention,
    BlockConfig,
    LinearScaling,
    Llama3Scaling,
    Mlp,
    ModelConfig,
    Norm,
    Residual,
    Rotary,
    Tied,
)


def normalise(x, norm: Norm, params):
    out = np.empty_like(x, dtype=np.float64)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index].astype(np.float64)
        if norm.kind == "layer":
            row = (row - row.mean()) / np.sqrt(row.var() + norm.eps)
            out[index] = row * params["scale"] + params["bias"]
        else:
            out[index] = row / np.sqrt((row**2).mean() + norm.eps) * params["scale"]
    return out


def frequencies(rotary: Rotary, dim: int):
    plain = [rotary.theta ** (-2.0 * i / dim) for i in range(dim // 2)]
    match rotary.scaling:
        case None:
            return np.array(plain)
        case LinearScaling(factor=factor):
            return np.array(plain) / factor
        case Llama3Scaling() as s:
            out = []
            for f in plain:
                wavelength = 2 * math.pi / f
                if wavelength < s.original_context / s.high_freq_factor:
                    out.append(f)
                elif wavelength > s.original_context / s.low_freq_factor:
                    out.append(f / s.factor)
                else:
                    smooth = (s.original_context / wavelength - s.low_freq_factor) / (
                        s.high_freq_factor - s.low_freq_factor
                    )
                    out.append((1 - smooth) * f / s.factor + smooth * f)
            return np.array(out)


def rotate(head, position, freqs):
    """One head vector: pairs (i, i + n) as complex numbers times exp(i angle)."""
    n = len(freqs)
    pairs = (head[:n] + 1j * head[n : 2 * n]) * np.exp(1j * position * freqs)
    return np.concatenate([pairs.real, pairs.imag, head[2 * n :]])


def attend(query, key, value):
    """(B, T, H, K) and (B, T, G, K): one weighted sum a batch row, head and token."""
    batch, length, heads, size = query.shape
    share = heads // key.shape[2]
    out = np.zeros((batch, length, heads, size))
    for b, t, h in np.ndindex(batch, length, heads):
        scores = [
            float(query[b, t, h].astype(np.float64) @ key[b, s, h // share])
            / math.sqrt(size)
            for s in range(t + 1)
        ]
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        for s in range(t + 1):
            out[b, t, h] += weights[s] * value[b, s, h // share]
    return out


def affine(x, params):
    y = x @ np.asarray(params["kernel"], np.float64)
    return y + np.asarray(params["bias"], np.float64) if "bias" in params else y


def self_attention(x, config: Attention, params):
    batch, length, _ = x.shape
    split = {}
    for name, heads in (
        ("query", config.heads),
        ("key", config.kv_heads),
        ("value", config.kv_heads),
    ):
        flat = affine(x, params[name])
        split[name] = flat.reshape(batch, length, heads, config.head_dim)
    if config.position is not None:
        freqs = frequencies(config.position, config.rotary_dim)
        for name in ("query", "key"):
            heads = split[name]
            for b, t, h in np.ndindex(heads.shape[:3]):
                heads[b, t, h] = rotate(heads[b, t, h], t, freqs)
    mixed = attend(split["query"], split["key"], split["value"])
    return affine(mixed.reshape(batch, length, -1), params["output"])


def activate(x, name):
    def one(v):
        match name:
            case "gelu":
                return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))
            case "gelu_tanh":
                inner = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
                return 0.5 * v * (1 + math.tanh(inner))
            case "relu":
                return max(v, 0.0)
            case "silu":
                return v / (1 + math.exp(-v))

    return np.vectorize(one)(np.asarray(x, np.float64))


def mlp(x, config: Mlp, params):
    up = affine(x, params["up"])
    if config.gated:
        middle = activate(affine(x, params["gate"]), config.activation) * up
    else:
        middle = activate(up, config.activation)
    return affine(middle, params["down"])


def block(x, config: BlockConfig, params):
    mixed = self_attention(
        normalise(x, config.norm, params["mixer_norm"]), config.mixer, params["mixer"]
    )
    after = x if config.residual is Residual.PARALLEL else x + mixed
    fed = mlp(
        normalise(after, config.norm, params["feed_forward_norm"]),
        config.feed_forward,
        params["feed_forward"],
    )
    return x + mixed + fed


def layer_params(config: ModelConfig, params, layer):
    """Parameters of one layer, unstacked."""
    size = len(config.pattern)
    if layer >= (config.layers // size) * size:
        return params[f"tail_{layer % size}"]

    def row(tree):
        if isinstance(tree, dict):
            return {name: row(node) for name, node in tree.items()}
        return np.asarray(tree)[layer // size]

    return row(params["periods"][f"slot_{layer % size}"])


def logits(config: ModelConfig, params, ids):
    tokens = np.asarray(params["embedding"]["tokens"], np.float64)
    x = tokens[ids]
    if config.embedding.positions is not None:
        x = x + np.asarray(params["embedding"]["positions"])[: ids.shape[1]]
    for layer in range(config.layers):
        part = config.pattern[layer % len(config.pattern)]
        x = block(x, part, layer_params(config, params, layer))
    x = normalise(x, config.final_norm, params["final_norm"])
    if isinstance(config.head, Tied):
        return x @ tokens.T
    return affine(x, params["head"])
