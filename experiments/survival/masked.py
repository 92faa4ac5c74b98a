"""A toy of masked-diffusion models: noisy runs of one symbol, learned and rewarded."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.survival.toy import adam, fit
from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like
from lt_mia_jax.policy.diffusion.decode import DecodeSettings, Rollout, decode
from lt_mia_jax.policy.diffusion.model import (
    Diffusion,
    Examples,
    bidirectional,
    denoising_loss,
)

END, MASK, TAG, SYMBOLS, FIRST = 0, 1, 2, 10, 3
"""Ids: end, mask, start of a prompt; symbols, and the id of the first one."""
LENGTH, FULL = 16, 12
"""Response tokens, and symbols of a complete answer."""
MODEL = LanguageModel(
    bidirectional(gpt2_like(16, width=64, layers=2, heads=4, context=24))
)
DIFFUSION = Diffusion(MODEL, mask=MASK, end=END)


class Noisy(NamedTuple):
    """A batch, and the seed of its masks."""

    examples: Examples
    seed: Int[Any, ""]


def prompts(rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """A tag, and one to four symbols that mean nothing."""
    ids = FIRST + rng.integers(SYMBOLS, size=(rows, 5))
    ids[:, 0] = TAG
    return ids.astype(np.int32), rng.integers(2, 6, size=rows).astype(np.int32)


def examples(
    rng: np.random.Generator, rows: int, *, kept: float, short: float
) -> Examples:
    """Runs of any symbol, which goes on with probability `kept`, or any other follows.

    With probability `short` an answer ends early, after 1 to 11 symbols.
    """
    ids, lengths = prompts(rng, rows)
    symbols = [rng.integers(SYMBOLS, size=rows)]
    for _ in range(LENGTH - 1):
        right = rng.random(rows) < kept
        other = rng.integers(SYMBOLS, size=rows)
        symbols.append(np.where(right, symbols[-1], other))
    count = np.where(rng.random(rows) < short, rng.integers(1, FULL, size=rows), FULL)
    answer = FIRST + np.stack(symbols, axis=1)
    answer = np.where(np.arange(LENGTH) < count[:, None], answer, END)
    return Examples(ids, lengths, answer.astype(np.int32))


def noisy_loss(diffusion: Diffusion, params: Params, batch: Noisy) -> Array:
    """`denoising_loss` with masks of the batch's seed."""
    return denoising_loss(diffusion, params, batch.examples, jax.random.key(batch.seed))


def pretrained(
    seed: int, *, steps: int = 300, kept: float = 0.7, short: float = 0.1
) -> Params:
    """A model that has learned noisy runs."""
    rng = np.random.default_rng((seed, 11))
    params, state = MODEL.init(jax.random.key(seed)), None
    for start in range(0, steps, 100):
        batches = [
            Noisy(examples(rng, 64, kept=kept, short=short), np.uint32(start + i))
            for i in range(100)
        ]
        params, state, _ = fit(
            DIFFUSION, params, batches, adam(1e-3), state, loss=noisy_loss
        )
    return params


def symbols_of(tokens: Int[Any, "N T"]) -> Int[np.ndarray, "N"]:
    """Symbols before the first end token."""
    ended = np.asarray(tokens) == END
    return np.where(ended.any(axis=1), ended.argmax(axis=1), ended.shape[1])


def reward(rollout: Rollout) -> Float[np.ndarray, "N"]:
    """Share of an answer's neighbors that are equal; 0 below two symbols."""
    tokens = np.asarray(rollout.tokens)
    right = tokens[:, 1:] == tokens[:, :-1]
    count = symbols_of(tokens)
    pair = np.arange(1, LENGTH) < count[:, None]
    return (right & pair).sum(axis=1) / np.maximum(count - 1, 1)


def held_out(
    params: Params, settings: DecodeSettings, seed: int, rows: int = 512
) -> Rollout:
    """Answers to prompts of their own."""
    ids, lengths = prompts(np.random.default_rng((seed, 12)), rows)
    key = jax.random.key(seed + 10**6)
    return decode(DIFFUSION, params, ids, lengths, settings=settings, key=key)


def rollouts(
    params: Params, settings: DecodeSettings, key: Any, number: int, group: int
) -> Rollout:
    """`group` answers to each of `number` new prompts."""
    for_prompts, for_answers = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(for_prompts)))
    ids, lengths = (np.repeat(x, group, axis=0) for x in prompts(rng, number))
    return decode(DIFFUSION, params, ids, lengths, settings=settings, key=for_answers)


@dataclass(frozen=True)
class Learner:
    """Adam on one loss, with gradients clipped to norm 1."""

    loss: Callable[[Params, Any], Array]
    """A module-level function of parameters and batch, or updates compile again."""
    rate: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The transformation."""
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.rate))

    def init(self, params: Params) -> Any:
        """The state of the optimizer."""
        return jax.jit(self.optimizer.init)(params)

    @functools.partial(jax.jit, static_argnums=0)
    def update(self, params: Params, state: Any, batch: Any) -> tuple[Params, Any]:
        """Parameters and state after one update."""
        gradient = jax.grad(self.loss)(params, batch)
        step, state = self.optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p + u, params, step), state
