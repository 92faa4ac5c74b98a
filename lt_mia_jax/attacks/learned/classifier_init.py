"""Initial parameters of the attack's classifiers."""

import math

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig


def _uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _linear_init(key: Array, inputs: int, outputs: int) -> Params:
    bound = 1 / math.sqrt(inputs)
    kernel, bias = jax.random.split(key)
    return {
        "kernel": _uniform(kernel, (inputs, outputs), bound),
        "bias": _uniform(bias, (outputs,), bound),
    }


def _norm_init(width: int) -> Params:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _encoder_layer_init(key: Array, config: ClassifierConfig) -> Params:
    d = config.width
    qkv, output, up, down = jax.random.split(key, 4)
    return {
        "qkv": {
            # Xavier-uniform of the packed (3d, d) matrix.
            "kernel": _uniform(qkv, (d, 3 * d), math.sqrt(6 / (4 * d))),
            "bias": jnp.zeros(3 * d),
        },
        "output": {**_linear_init(output, d, d), "bias": jnp.zeros(d)},
        "norm1": _norm_init(d),
        "up": _linear_init(up, d, config.feed_forward),
        "down": _linear_init(down, config.feed_forward, d),
        "norm2": _norm_init(d),
    }


def _pooled_layer_init(key: Array, config: ClassifierConfig) -> Params:
    up, down = jax.random.split(key)
    return {
        "up": _linear_init(up, config.width, config.feed_forward),
        "down": _linear_init(down, config.feed_forward, config.width),
        "norm": _norm_init(config.width),
    }


def _stack(layers: list[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _trunk_init(key: Array, config: ClassifierConfig) -> Params:
    d = config.width
    keys = jax.random.split(key, 6)
    params: Params = {
        "proj": _linear_init(keys[0], len(config.columns), d),
        "norm": _norm_init(d),
        "head": {
            "hidden": _linear_init(keys[1], d, d),
            "output": _linear_init(keys[2], d, 1),
        },
    }
    if config.architecture == "transformer":
        # One layer, copied: the layers of the original start identical.
        layer = _encoder_layer_init(keys[3], config)
        params["layers"] = _stack([layer] * config.layers)
        params["pool"] = {
            "hidden": _linear_init(keys[4], d, d // 2),
            "output": _linear_init(keys[5], d // 2, 1),
        }
    else:
        params["layers"] = _stack(
            [
                _pooled_layer_init(k, config)
                for k in jax.random.split(keys[3], config.layers)
            ]
        )
    return params


def _perceptron_init(key: Array, sizes: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"dense_{i}": _linear_init(k, *sizes[i : i + 2]) for i, k in enumerate(keys)
    }


def init(config: ClassifierConfig, key: Array) -> Params:
    """Initial parameters, distributed as the original's.

    With `config.standardise` the tree also holds the constants `input_mean` (zeros)
    and `input_scale` (ones); training replaces them by measured values.

    Source: specification of the LT-MIA classifier (Learning the Signature of
    Memorization in Autoregressive Language Models, arXiv 2604.03199): linear layers
    uniform in +-1/sqrt(fan_in), packed QKV Xavier-uniform with zero biases, all
    encoder layers equal at the start.
    """
    seen = len(config.columns)
    match config.architecture:
        case "transformer" | "pooled_transformer":
            params = _trunk_init(key, config)
        case "lr":
            params = _perceptron_init(key, (seen * config.length, 1))
        case "mlp":
            params = _perceptron_init(key, (seen * config.length, *config.hidden, 1))
        case "mean_mlp":
            params = _perceptron_init(key, (seen, *config.hidden, 1))
    if config.standardise:
        params["input_mean"] = jnp.zeros(seen)
        params["input_scale"] = jnp.ones(seen)
    return params
