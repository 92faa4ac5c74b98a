"""N2N for language models: a policy that removes residual blocks of a teacher.

A bidirectional LSTM reads a description of each block and gives the probability that
it is kept. What is left is a smaller model, which is trained a little and rewarded for
accuracy and size; the policy learns from these rewards.

Source: "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning", arXiv 1709.06030, and its release (`anubhavashok/N2N`). Kept: the removal
stage, the LSTM and its sizes, the reward, the constraints. Not kept: the shrinkage
stage (widths of layers); descriptions of convolutions, which became those of residual
blocks; the release's average credit (see `reinforce`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Bool, Float, Key, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import (
    Attention,
    BlockConfig,
    Mamba,
    ModelConfig,
    RgLru,
    RwkvTimeMix,
)
from lt_mia_jax.models.language_model import LanguageModel
from lt_mia_jax.policy.reinforce import Learner, reinforce
from lt_mia_jax.trees import (
    join_layers,
    layer_numbers,
    named_leaves,
    parameter_count,
    split_layers,
)

KINDS = (Attention, Mamba, RwkvTimeMix, RgLru)
Number = int | float | Float[Array | np.ndarray, "*B"]
INVALID = -1.0
"""The reward of a child that cannot be made, such as one without blocks."""


def describe_blocks(config: ModelConfig) -> Float[np.ndarray, "L 8"]:
    """What the policy reads of each block.

    Four columns say the kind of mixer (`KINDS`); then the position i / L, heads or the
    state size of a channel and the ratio of the feed-forward's width to the model's
    (both as log2(1 + x)), and the share of all parameters.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> config = gpt2_like(64, width=16, layers=2, heads=3, context=8)
      >>> describe_blocks(config)[1, :6].tolist()
      [1.0, 0.0, 0.0, 0.0, 0.5, 2.0]
    """
    shapes = LanguageModel(config).shapes()
    leaves, sizes = named_leaves(shapes), np.zeros(config.layers)
    for name, numbers in layer_numbers(shapes).items():
        sizes[numbers] += np.prod(leaves[name].shape) / len(numbers)
    shares = sizes / parameter_count(shapes)
    rows = [
        [
            *(float(isinstance(block.mixer, kind)) for kind in KINDS),
            number / config.layers,
            np.log2(1 + _heads_or_state(block)),
            np.log2(
                1
                + (block.feed_forward.width if block.feed_forward else 0) / config.width
            ),
            shares[number],
        ]
        for number, block in enumerate(_blocks(config))
    ]
    return np.array(rows, np.float32)


def _heads_or_state(block: BlockConfig) -> int:
    match block.mixer:
        case Attention(heads=heads) | RgLru(heads=heads):
            return heads
        case Mamba(state=state):
            return state
        case RwkvTimeMix():
            return 1


def _blocks(config: ModelConfig) -> list[BlockConfig]:
    """The block of each layer."""
    return [config.pattern[n % len(config.pattern)] for n in range(config.layers)]


class Child(NamedTuple):
    """A model with some of the blocks of another."""

    config: ModelConfig
    params: Params
    size: int
    """Its number of parameters."""


def child(
    config: ModelConfig,
    params: Params,
    keep: Sequence[bool] | Bool[np.ndarray, "L"],
) -> Child:
    """The model without the blocks whose `keep` is False.

    Whole blocks are removed: norms, mixer and feed-forward. The rest is unchanged and
    in its order. Where kinds of blocks are mixed, `pattern` becomes the shortest one
    that gives what is left. Layers are numbered anew, which matters to models with
    `scale_by_layer` only.

    Example:
      >>> from lt_mia_jax.models import griffin_like
      >>> config = griffin_like(64, width=16, layers=6, heads=2)
      >>> shapes = LanguageModel(config).shapes()
      >>> params = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
      >>> small = child(config, params, [True, False, True, True, False, True])
      >>> small.config.layers, len(small.config.pattern)  # recurrent, attention, ...
      (4, 2)

    Raises:
      InputError: no block is kept, or `keep` has not one value for each block.
    """
    kept = np.flatnonzero(np.asarray(keep))
    if len(keep) != config.layers or not kept.size:
        raise InputError(
            f"{kept.size} of {len(keep)} blocks kept; expected one value for each of "
            f"{config.layers}, at least one of them True"
        )
    if kept.size < config.layers:
        blocks, (rest, layers) = _blocks(config), split_layers(params)
        pattern = _shortest([blocks[n] for n in kept])
        params = join_layers(rest, [layers[n] for n in kept], len(pattern))
        config = replace(config, layers=len(kept), pattern=pattern)
    return Child(config, params, parameter_count(params))


def _shortest(blocks: list[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The shortest pattern that begins again until it has given all blocks."""
    lengths = range(1, len(blocks) + 1)
    found = next(n for n in lengths if blocks[n:] == blocks[: len(blocks) - n])
    return tuple(blocks[:found])


def n2n_reward(
    acc: Number, acc_teacher: Number, size: Number, size_teacher: Number
) -> Number:
    """`(acc / acc_teacher) * C * (2 - C)` with the compression `C = 1 - size ratio`.

    0 for a child as large as its teacher, whatever its accuracy.

    Example:
      >>> n2n_reward(0.8, 0.8, 50, 100)
      0.75
    """
    compression = 1 - size / size_teacher
    return acc / acc_teacher * (compression * (2 - compression))


def constrained_reward(reward: Number, epoch: int, horizon: int = 15) -> Number:
    """The reward of a child that violates a constraint: `(e - 1) + e * reward`.

    `e = max(0, 1 - epoch / horizon)^4` falls from 1 to 0, so that the violation costs
    nothing at first, and everything (-1) from `horizon` on.

    Example:
      >>> [constrained_reward(0.5, epoch) for epoch in (0, 15, 30)]
      [0.5, -1.0, -1.0]
    """
    share = max(0.0, 1 - epoch / horizon) ** 4
    return (share - 1) + share * reward


class KeepPolicy(nn.Module):
    """The logit of the probability that each block is kept.

    It takes any number of blocks, so that what it learned on one teacher starts the
    search on another.
    """

    layers: int = 2
    """LSTM layers, each in both directions."""
    hidden: int = 30
    """Units of each direction."""

    @nn.compact
    def __call__(self, blocks: Float[Array, "L F"]) -> Float[Array, "L"]:
        """From the rows of `describe_blocks`."""
        x: Any = jnp.asarray(blocks)
        for _ in range(self.layers):
            forward, backward = (
                nn.RNN(nn.OptimizedLSTMCell(self.hidden)) for _ in range(2)
            )
            x = nn.Bidirectional(forward, backward)(x)
        return nn.Dense(1)(x)[:, 0]


def sample_keeps(
    logits: Float[Array, "L"], key: Key[Array, ""], rollouts: int = 5
) -> Bool[Array, "N L"]:
    """Which blocks are kept, for each of N rollouts."""
    probability = jnp.tile(jax.nn.sigmoid(logits), (rollouts, 1))
    return jax.random.bernoulli(key, probability)


def keep_log_probs(
    logits: Float[Array, "L"], keep: Bool[Array, "N L"]
) -> Float[Array, "N L"]:
    """Log probability of each choice.

    Example:
      >>> keep_log_probs(jnp.zeros(2), jnp.array([[True, False]])).round(4)
      Array([[-0.6931, -0.6931]], dtype=float32)
    """
    each = logits[None]
    return jax.nn.log_sigmoid(jnp.where(keep, each, -each))


def learn_keeps(
    learner: Learner,
    blocks: Float[Array | np.ndarray, "L F"],
    keep: Bool[Array | np.ndarray, "N L"],
    rewards: Float[Array | np.ndarray, "N"],
    *,
    policy: KeepPolicy,
    optimizer: optax.GradientTransformation,
    decay: float = 0.9,
) -> Learner:
    """The learner after one update on N children and their rewards.

    Adam with a rate of 3e-3 is the release's optimizer. Example: `docs/policy.md`.
    """
    rows, chosen = jnp.asarray(blocks), jnp.asarray(keep)

    def log_probs(params: Params) -> Array:
        logits = jnp.asarray(policy.apply({"params": params}, rows))
        return keep_log_probs(logits, chosen)

    return reinforce(
        learner, log_probs, jnp.asarray(rewards), optimizer=optimizer, decay=decay
    )
