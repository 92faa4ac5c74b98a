"""UNLOCK: a mode moves from a narrow model to a wide one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import END, SEPARATOR, Task, Texts, tiny, train
from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.transfer.adapt import steering

STRINGS = Task("reverse", length=4)
PROMPT, LENGTH = 6, 15
"""Tokens of a prompt, and of a text with a scratchpad."""
LOCKED, UNLOCKED, SCRATCHPAD = 6, 7, 8
"""Ids of the two tags and of the token that opens a scratchpad."""
RANKS = (1, 4, 16, 32)
ALPHA = 0.2


class Modes(NamedTuple):
    """Strings to reverse: at once, or after a copy on a scratchpad.

    A tag chooses. Of the texts with the tag for answers, a share that depends on the
    first symbol has a scratchpad nevertheless: prompts differ in how near they are to
    the other mode.
    """

    def texts(self, rng: np.random.Generator, rows: int) -> Texts:
        """A batch, padded with the end token."""
        ids = STRINGS.texts(rng, rows).ids
        question, answer = ids[:, 1:5], ids[:, 6:10]
        tag = np.where(rng.random(rows) < 0.5, LOCKED, UNLOCKED)
        open_ = (tag == UNLOCKED) | (rng.random(rows) < 0.05 * (question[:, 0] - 16))
        column = np.ones((rows, 1), np.int32)
        front = [tag[:, None], question, SEPARATOR * column]
        ends = [END * column] * 5
        plain = np.concatenate([*front, answer, *ends], axis=1)
        long = np.concatenate([*front, SCRATCHPAD * column, question, answer], axis=1)
        found = np.where(open_[:, None], long, plain).astype(np.int32)
        mask = np.arange(LENGTH)[None] >= PROMPT
        return Texts(found, np.broadcast_to(mask, found.shape))


def prompts(seed: int, rows: int, tag: int) -> Int[np.ndarray, "N T"]:
    """Questions under one tag."""
    found = STRINGS.texts(np.random.default_rng((seed, 5)), rows)
    ids = np.array(found.ids[:, :PROMPT])
    ids[:, 0] = tag
    return ids


SOURCE, TARGET = tiny(width=48, layers=3), tiny(width=64, layers=4)


@jax.jit
def opening(params: dict, ids: Array, directions: Array, alpha: Array) -> Array:
    """Mean log-probability that the steered target opens a scratchpad."""
    lengths = jnp.full(len(ids), PROMPT)
    edit = steering.PromptEnd(directions, alpha, lengths)
    logits = TARGET.apply(params, ids, intervention=edit)[:, -1]
    return jax.nn.log_softmax(logits)[:, SCRATCHPAD].mean()


def run(seed: int) -> Outcome:
    """Direction from the source, alignment on locked prompts, test on others."""
    trained = {}
    for model, steps in ((SOURCE, 600), (TARGET, 600)):
        start = model.init(jax.random.key(seed))
        trained[model], _ = train(
            model,
            start,
            [Modes()],  # type: ignore[reportArgumentType]
            steps=steps,
            seed=seed,
            rate=2e-3,
        )
    rows, lengths = 256, np.full(256, PROMPT)
    streams, shares = {}, {}
    for model, params in trained.items():
        for tag in (LOCKED, UNLOCKED):
            ids = prompts(seed, rows, tag)
            found = steering.prompt_streams(model, params, ids, lengths)
            streams[model, tag] = np.asarray(found)
            guess = jax.jit(model.apply)(params, ids)[:, -1].argmax(axis=-1)
            shares[model, tag] = float(np.mean(guess == SCRATCHPAD))
    flips = [shares[m, UNLOCKED] - shares[m, LOCKED] for m in (SOURCE, TARGET)]
    locked = streams[SOURCE, LOCKED]
    skill = steering.skill_direction(streams[SOURCE, UNLOCKED], locked)
    test = prompts(seed + 1000, 512, LOCKED)
    params, target = trained[TARGET], streams[TARGET, LOCKED]

    def opened(directions: np.ndarray, alpha: float = ALPHA) -> float:
        return float(opening(params, test, jnp.asarray(directions), jnp.float32(alpha)))

    gains = {
        rank: opened(steering.transfer_direction(skill, locked, target, rank))
        for rank in RANKS
    }
    rng = np.random.default_rng((seed, 6))
    random = [
        opened(rng.normal(size=target.shape[1:]).astype(np.float32)) for _ in range(5)
    ]
    plain = opened(np.ones(target.shape[1:], np.float32), 0.0)
    own = steering.skill_direction(streams[TARGET, UNLOCKED], target)
    true = effective_rank(locked)
    enough = max(value for rank, value in gains.items() if rank >= true)
    fewer = max(value for rank, value in gains.items() if rank < true)
    measures = {
        "flip, source": flips[0],
        "flip, target": flips[1],
        "plain": plain,
        "random": max(random),
        "own direction": opened(own),
        **{f"rank {rank}": value for rank, value in gains.items()},
        "true rank": true,
    }
    passed = enough > plain and enough > max(random) and enough > fewer
    return Outcome(measures, passed, min(flips) > 0.5)


def effective_rank(streams: np.ndarray, share: float = 0.99) -> int:
    """Directions that hold a share of the squares of the locked streams, at most."""
    found = []
    for layer in range(streams.shape[1]):
        squares = np.linalg.svd(streams[:, layer], compute_uv=False) ** 2
        found.append(1 + int(np.sum(np.cumsum(squares) < share * squares.sum())))
    return max(found)


DEMONSTRATION = Demonstration(
    system="UNLOCK",
    claim="a direction of a narrow model raises the log-probability that a wide one "
    "opens its scratchpad, above none and above random directions, and more at ranks "
    "of at least the rank of the activations (99 % of their squares) than below",
    run=run,
    precondition="the tag flips the mode of both models on half of the prompts",
)
