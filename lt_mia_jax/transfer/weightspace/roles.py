"""What each parameter of a model is for.

It is read from the path that `LanguageModel` gives to a leaf, never from the name of a
model family, so it holds for attention, Mamba, RWKV, Griffin and mixed stacks.
"""

from typing import Any, Literal

import jax.numpy as jnp

from lt_mia_jax.arrays import Array

Tree = Any
"""Parameters of a model: nested dicts of arrays."""

Role = Literal[
    "embedding", "head", "mixer", "feed_forward", "norm", "recurrence", "other"
]

PROTECTED: tuple[Role, ...] = ("norm", "recurrence")
"""Roles that are not trimmed or pruned by default: few, and a small change of one may
matter much."""

_MATRICES = ("kernel", "bias", "taps", "blocks")
"""Names of weights and biases in a layer; what a layer holds beside them are constants
of its recurrence: decays, bonus, skip, factors that mix a token with the one before."""


def role(path: str) -> Role:
    """What a parameter is for, from its path.

    "embedding" (tokens, positions, a projection; also the table of a tied head),
    "head", "mixer" (attention or a recurrence's matrices), "feed_forward", "norm" (also
    those of queries and keys), "recurrence" (constants: decays, step biases, skips,
    mixing factors) or "other".

    Example:
      >>> role("periods/slot_0/mixer/query/kernel"), role("tail_0/mixer/log_decay")
      ('mixer', 'recurrence')
    """
    parts = path.split("/")
    if any(part.endswith("norm") for part in parts[:-1]):
        return "norm"
    if parts[0] in ("embedding", "embedding_projection"):
        return "embedding"
    if parts[0] in ("head", "head_projection"):
        return "head"
    for half in ("mixer", "feed_forward"):
        if half in parts:
            constant = parts[-1] not in _MATRICES or parts[-2:] == ["step", "bias"]
            return "recurrence" if constant else half
    return "other"


def vocabulary_axis(path: str) -> int | None:
    """The axis of a parameter along which tokens of the vocabulary lie, if any."""
    return {"embedding/tokens": 0, "head/kernel": -1, "head/bias": -1}.get(path)


def shifted(start: Array, move: Array) -> Array:
    """`start + move` in the dtype of `start`, whose bits stay where `move` is 0."""
    moved = (start.astype(jnp.float32) + move).astype(start.dtype)
    return jnp.where(move == 0, start, moved)


def is_matrix(path: str) -> bool:
    """Whether a parameter is a matrix of a mixer or feed-forward, or a block of one."""
    named = path.rpartition("/")[2] in ("kernel", "blocks")
    return named and role(path) in ("mixer", "feed_forward")
