"""Language models from their definitions: float64 NumPy, loops over every axis."""

import math

import numpy as np

from lt_mia_jax.models.config import (
    Alibi,
    Attention,
    BlockConfig,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    Mamba,
    Mlp,
    ModelConfig,
    Norm,
    NormPlace,
    Residual,
    RgLru,
    Rotary,
    RwkvTimeMix,
    Tied,
)


def wide(params, name):
    return np.asarray(params[name], np.float64)


def normalize(x, norm: Norm, params):
    out = np.empty_like(x, dtype=np.float64)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index].astype(np.float64)
        # Parameters of one head when there are several sets of them.
        own = {
            name: leaf if np.ndim(leaf) == 1 else leaf[index[-1]]
            for name, leaf in params.items()
        }
        if isinstance(norm, LayerNorm):
            row = (row - row.mean()) / np.sqrt(row.var() + norm.eps)
            out[index] = row * own.get("scale", 1.0) + own.get("bias", 0.0)
        else:
            scale = own["scale"] + (1.0 if norm.unit_offset else 0.0)
            out[index] = row / np.sqrt((row**2).mean() + norm.eps) * scale
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


def rotate(head, position, freqs, interleaved=False):
    """One head vector: pairs as complex numbers times exp(i angle)."""
    n = len(freqs)
    out = head.astype(np.float64).copy()
    for i, f in enumerate(freqs):
        one, two = (2 * i, 2 * i + 1) if interleaved else (i, i + n)
        turned = (head[one] + 1j * head[two]) * np.exp(1j * position * f)
        out[one], out[two] = turned.real, turned.imag
    return out


def slopes(heads):
    """The recursive rule of the paper's code."""
    if math.log2(heads).is_integer():
        return [2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    above = slopes(2 * below)
    return slopes(below) + above[0::2][: heads - below]


def attend(query, key, value, *, scale=None, window=None, bias=None, softcap=None):
    """(B, T, H, K) and (B, T, G, K): one weighted sum a batch row, head and token."""
    batch, length, heads, size = query.shape
    share = heads // key.shape[2]
    out = np.zeros((batch, length, heads, size))
    for b, t, h in np.ndindex(batch, length, heads):
        first = 0 if window is None else max(0, t - window + 1)
        past = range(first, t + 1)
        scores = [
            float(query[b, t, h].astype(np.float64) @ key[b, s, h // share])
            * (scale or 1 / math.sqrt(size))
            + (0.0 if bias is None else bias[h][t - s])
            for s in past
        ]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        for s, weight in zip(past, weights, strict=True):
            out[b, t, h] += weight * value[b, s, h // share]
    return out


def affine(x, params):
    y = x @ np.asarray(params["kernel"], np.float64)
    return y + np.asarray(params["bias"], np.float64) if "bias" in params else y


def self_attention(x, config: Attention, params, layer):
    batch, length, _ = x.shape
    split = {}
    for name, heads in (
        ("query", config.heads),
        ("key", config.kv_heads),
        ("value", config.kv_heads),
    ):
        flat = affine(x, params[name])
        split[name] = flat.reshape(batch, length, heads, config.head_dim)
    if config.clip_qkv is not None:
        limit = config.clip_qkv
        split = {n: np.clip(y, -limit, limit) for n, y in split.items()}
    if config.qk_norm is not None:
        for name in ("query", "key"):
            norm, y = config.qk_norm.norm, split[name]
            rows = y.reshape(batch, length, -1) if config.qk_norm.joint else y
            normed = normalize(rows, norm, params[f"{name}_norm"])
            split[name] = normed.reshape(y.shape)
    bias = None
    match config.position:
        case Rotary() as rotary:
            freqs = frequencies(rotary, config.rotary_dim)
            for name in ("query", "key"):
                heads = split[name]
                for b, t, h in np.ndindex(heads.shape[:3]):
                    turned = rotate(heads[b, t, h], t, freqs, rotary.interleaved)
                    heads[b, t, h] = turned
        case Alibi() as alibi:
            # Minus slope times distance, as in the paper; rounding is left out.
            factor = config.head_dim**-0.5 if alibi.before_scaling else 1.0
            bias = [
                [-slope * distance * factor for distance in range(length)]
                for slope in slopes(config.heads)
            ]
    scale = config.scale or 1 / math.sqrt(config.head_dim)
    mixed = attend(
        split["query"],
        split["key"],
        split["value"],
        scale=scale / layer if config.scale_by_layer else scale,
        window=config.window,
        bias=bias,
        softcap=config.score_softcap,
    )
    return affine(mixed.reshape(batch, length, -1), params["output"])


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softplus(x):
    return np.logaddexp(0.0, np.asarray(x, np.float64))


def convolve(x, params):
    taps = wide(params, "taps")
    out = np.zeros_like(x, dtype=np.float64)
    for t in range(x.shape[1]):
        for w in range(len(taps)):
            source = t - (len(taps) - 1) + w
            if source >= 0:
                out[:, t] += taps[w] * x[:, source]
    return out + params["bias"] if "bias" in params else out


def mamba(x, config: Mamba, params):
    inner = affine(x, params["input"])
    u, gate = inner[..., : config.width], inner[..., config.width :]
    u = activate(convolve(u, params["conv"]), config.activation)
    selected = affine(u, params["select"])
    low = selected[..., : config.step_rank]
    enter = selected[..., config.step_rank : config.step_rank + config.state]
    leave = selected[..., config.step_rank + config.state :]
    step = softplus(affine(low, params["step"]["up"]) + params["step"]["bias"])
    decay = -np.exp(wide(params, "log_decay"))
    y = np.zeros_like(u)
    for b in range(len(x)):
        state = np.zeros((config.width, config.state))
        for t in range(x.shape[1]):
            kept = np.exp(step[b, t][:, None] * decay)
            state = kept * state + np.outer(step[b, t] * u[b, t], enter[b, t])
            y[b, t] = state @ leave[b, t] + wide(params, "skip") * u[b, t]
    return affine(y * gate * sigmoid(gate), params["output"])


def before(x):
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def shifted(x, params, name):
    mix = wide(params, f"mix_{name}")
    return mix * x + (1 - mix) * before(x)


def time_mix(x, config: RwkvTimeMix, params):
    key = affine(shifted(x, params, "key"), params["key"])
    value = affine(shifted(x, params, "value"), params["value"])
    gate = sigmoid(affine(shifted(x, params, "receptance"), params["receptance"]))
    rate, bonus = np.exp(wide(params, "decay")), wide(params, "bonus")
    out = np.zeros_like(key)
    for b, t in np.ndindex(key.shape[:2]):
        logs = [key[b, i] - (t - 1 - i) * rate for i in range(t)]
        logs.append(key[b, t] + bonus)
        weights = np.exp(np.array(logs) - np.max(logs, axis=0))
        weights /= weights.sum(axis=0)
        out[b, t] = (weights * value[b, : t + 1]).sum(axis=0)
    return affine(gate * out, params["output"])


def channel_mix(x, params):
    middle = affine(shifted(x, params, "key"), params["key"])
    gate = sigmoid(affine(shifted(x, params, "receptance"), params["receptance"]))
    return gate * affine(np.maximum(middle, 0) ** 2, params["value"])


def rglru(x, config: RgLru, params):
    gate = activate(affine(x, params["gate"]), config.activation)
    u = convolve(affine(x, params["input"]), params["conv"])
    size = config.width // config.heads
    recurrence = params["recurrence"]

    def opened(name):
        blocks, bias = (wide(recurrence[name], n) for n in ("blocks", "bias"))
        parts = [
            u[..., h * size : (h + 1) * size] @ blocks[h] + bias[h]
            for h in range(config.heads)
        ]
        return sigmoid(np.concatenate(parts, axis=-1))

    enter, rate = opened("input_gate"), softplus(wide(recurrence, "decay"))
    kept = np.exp(-8.0 * rate * opened("decay_gate"))
    y = np.zeros_like(u)
    for b in range(len(x)):
        state = np.zeros(config.width)
        for t in range(x.shape[1]):
            factor = 1.0 if t == 0 else np.sqrt(1 - kept[b, t] ** 2)
            state = kept[b, t] * state + factor * enter[b, t] * u[b, t]
            y[b, t] = state
    return affine(y * gate, params["output"])


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


def mix(x, config, params, layer):
    match config:
        case Attention():
            return self_attention(x, config, params, layer)
        case Mamba():
            return mamba(x, config, params)
        case RwkvTimeMix():
            return time_mix(x, config, params)
        case RgLru():
            return rglru(x, config, params)


def half(x, function, config: BlockConfig, params, name):
    """What one half adds to the stream `x`, norms included."""

    def normed(y, place):
        return normalize(y, config.norm, params.get(f"{name}{place}_norm", {}))

    match config.norm_place:
        case NormPlace.INPUT:
            return function(normed(x, ""))
        case NormPlace.OUTPUT:
            return normed(function(x), "_output")
        case NormPlace.BOTH:
            return normed(function(normed(x, "")), "_output")
        case NormPlace.SUM:
            return normed(x + function(x), "") - x


def block(x, config: BlockConfig, params, layer=1):
    def mixing(y):
        return mix(y, config.mixer, params["mixer"], layer)

    def feeding(y):
        own = params["feed_forward"]
        is_mlp = isinstance(config.feed_forward, Mlp)
        return mlp(y, config.feed_forward, own) if is_mlp else channel_mix(y, own)

    mixed = half(x, mixing, config, params, "mixer")
    if config.feed_forward is None:
        return x + mixed
    match config.residual:
        case Residual.SEQUENTIAL:
            fed = half(x + mixed, feeding, config, params, "feed_forward")
        case Residual.PARALLEL:
            fed = half(x, feeding, config, params, "feed_forward")
        case Residual.PARALLEL_SHARED_NORM:
            fed = half(x, feeding, config, params, "mixer")
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


def streams(config: ModelConfig, params, ids):
    """What each layer reads, and at the end what the final norm reads."""
    tokens = np.asarray(params["embedding"]["tokens"], np.float64)
    x = tokens[ids] * (config.embedding.scale or 1.0)
    if config.embedding.width is not None:
        x = affine(x, params["embedding_projection"])
    positions = config.embedding.positions
    if positions is not None:
        table = wide(params["embedding"], "positions")
        x = x + table[positions.offset + np.arange(ids.shape[1])]
    if config.embedding.norm is not None:
        x = normalize(x, config.embedding.norm, params.get("embedding_norm", {}))
    found = [x]
    for layer in range(config.layers):
        part = config.pattern[layer % len(config.pattern)]
        x = block(x, part, layer_params(config, params, layer), layer + 1)
        found.append(x)
    return found


def logits(config: ModelConfig, params, ids):
    x = streams(config, params, ids)[-1]
    if config.final_norm is not None:
        x = normalize(x, config.final_norm, params.get("final_norm", {}))
    if config.embedding.width is not None:
        x = affine(x, params["head_projection"])
    if isinstance(config.head, Tied):
        found = x @ wide(params["embedding"], "tokens").T
    else:
        found = affine(x, params["head"])
    cap = config.logit_softcap
    return found if cap is None else np.tanh(found / cap) * cap
