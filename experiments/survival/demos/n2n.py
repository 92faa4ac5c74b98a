"""N2N: a policy removes residual blocks of a teacher of eight."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, adam, fit, tiny, train
from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.policy.blocks import (
    INVALID,
    KeepPolicy,
    child,
    describe_blocks,
    learn_keeps,
    n2n_reward,
    sample_keeps,
)
from lt_mia_jax.policy.reinforce import Learner, new_learner
from lt_mia_jax.trees import parameter_count

TASKS = [Task("copy", 0, 4), Task("reverse", 0, 4)]
POLICY, ADAM = KeepPolicy(), adam(3e-3)
EPOCHS, ROLLOUTS, RANDOM = 100, 5, 50
STEPS, ROWS = 10, 16
"""Updates of a child, and the texts of each."""
WINDOW = 5
"""Epochs over which the policy's reward is averaged."""


def imitation(model: Any, params: Any, batch: tuple[Array, Array]) -> Array:
    """Mean squared distance from the teacher's logits."""
    ids, logits = batch
    return jnp.mean(jnp.square(model.apply(params, ids) - logits))


class Teacher:
    """A trained model, and what becomes of its children."""

    def __init__(self, layers: int, seed: int) -> None:
        self.model = tiny(layers=layers)
        start = self.model.init(jax.random.key(seed))
        self.params, _ = train(self.model, start, TASKS, steps=600, seed=seed)
        self.size = parameter_count(self.params)
        rng = np.random.default_rng((seed, 21))
        drawn = [TASKS[n % 2].texts(rng, ROWS).ids for n in range(STEPS)]
        logits = jax.jit(self.model.apply)
        self.batches = [(ids, np.asarray(logits(self.params, ids))) for ids in drawn]
        self.rewards: dict[tuple[bool, ...], tuple[float, float]] = {}
        self.accuracy = self.score(self.model, self.params, 0)

    def score(self, model: LanguageModel, params: Any, seed: int) -> float:
        """Accuracy on texts of both tasks; seed 0 is for rewards, 1 for the end."""
        found = [
            accuracy(model, params, task, rows=128, seed=900 + seed) for task in TASKS
        ]
        return float(np.mean(found))

    def raised(self, keep: Bool[np.ndarray, "L"]) -> tuple[float, float]:
        """Reward of a child, and its accuracy on other texts."""
        key = tuple(map(bool, keep))
        if not any(key):
            return INVALID, 0.0
        if key not in self.rewards:
            config, start, size = child(self.model.config, self.params, keep)
            model = LanguageModel(config, self.model.execution)
            params, _, _ = fit(model, start, self.batches, adam(1e-3), loss=imitation)
            found = (self.score(model, params, seed) for seed in (0, 1))
            reward, other = found
            reward = n2n_reward(reward, self.accuracy, size, self.size)
            self.rewards[key] = float(reward), other
        return self.rewards[key]


@jax.jit
def drawn(params: Any, blocks: Array, key: Array) -> Array:
    """Rollouts of the policy."""
    logits: Any = POLICY.apply({"params": params}, blocks)
    return sample_keeps(logits, key, ROLLOUTS)


learn = jax.jit(functools.partial(learn_keeps, policy=POLICY, optimizer=ADAM))


def search(
    teacher: Teacher, params: Any, seed: int
) -> tuple[Learner, Float[np.ndarray, "E N"], Bool[np.ndarray, "L"]]:
    """The learner at the end, all rewards, and the best choice of blocks seen."""
    blocks = jnp.asarray(describe_blocks(teacher.model.config))
    learner, history, best = new_learner(params, ADAM), [], (-2.0, np.zeros(0, bool))
    for key in jax.random.split(jax.random.key(seed), EPOCHS):
        keep = np.asarray(drawn(learner.params, blocks, key))
        rewards = [teacher.raised(each)[0] for each in keep]
        top = int(np.argmax(rewards))
        if rewards[top] > best[0]:
            best = rewards[top], keep[top]
        learner = learn(learner, blocks, keep, np.array(rewards, np.float32))
        history.append(rewards)
    return learner, np.array(history), best[1]


def smoothed(rewards: Float[np.ndarray, "E N"]) -> Float[np.ndarray, "M"]:
    """Means over windows of epochs."""
    return np.convolve(rewards.mean(axis=1), np.full(WINDOW, 1 / WINDOW), mode="valid")


def rollouts_to(rewards: Float[np.ndarray, "E N"], level: float) -> float:
    """Rollouts until the mean of a window reaches a level, or infinity."""
    found = np.flatnonzero(smoothed(rewards) >= level)
    return float((found[0] + WINDOW) * ROLLOUTS) if found.size else float("inf")


def run(seed: int) -> Outcome:
    """A search on eight blocks, random masks of the same size, and a warm start."""
    large, small = Teacher(8, seed), Teacher(4, seed + 1)
    blocks = describe_blocks(large.model.config)
    fresh = POLICY.init(jax.random.key(seed), blocks)["params"]
    _, rewards, best = search(large, fresh, seed)
    rng = np.random.default_rng((seed, 22))
    masks = [rng.permutation(best) for _ in range(RANDOM)]
    others = [large.raised(mask)[1] for mask in masks]
    learned, before, _ = search(small, fresh, seed + 1)
    _, warm, _ = search(large, learned.params, seed)
    level = float(smoothed(rewards)[-1])
    found = large.raised(best)[1]
    measures = {
        "teacher": 100 * large.accuracy,
        "found student": 100 * found,
        "median of random masks": 100 * float(np.median(others)),
        "best of random masks": 100 * max(others),
        "blocks kept": float(best.sum()),
        "parameters, of the teacher's": child(
            large.model.config, large.params, best
        ).size
        / large.size,
        "reward, found": large.raised(best)[0],
        "reward, first epochs": float(smoothed(rewards)[0]),
        "reward, last epochs": level,
        "reward, first epochs, warm": float(smoothed(warm)[0]),
        "reward, last epochs, 4 blocks": float(smoothed(before)[-1]),
        "rollouts to the last reward": rollouts_to(rewards, level),
        "rollouts to it, warm": rollouts_to(warm, level),
    }
    faster = rollouts_to(warm, level) < rollouts_to(rewards, level)
    return Outcome(measures, found > float(np.median(others)) and faster)


DEMONSTRATION = Demonstration(
    system="N2N",
    claim="The student found by removing blocks of eight is more accurate than the "
    "median of 50 random choices of as many blocks, and a policy that has searched a "
    "teacher of four blocks reaches the same reward in fewer rollouts.",
    run=run,
)
