"""Masters: a student of two layers learns from a teacher of eight that is masked."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, Texts, accuracy, adam, fit, tiny, train
from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.policy.masters import (
    Answers,
    js_divergence,
    masters_loss,
    scored_answers,
    transfer_reward,
)
from lt_mia_jax.transfer.weightspace.masking import mask_teacher, masked_fraction

TEACHER, STUDENT = tiny(layers=8), tiny(layers=2)
TASK = Task("modadd", 0, 2)
STEPS, ROWS = 200, 32
"""Updates of the distillation, the same with and without a mask."""
MASKED = 0.4
"""The fraction of the teacher's weights that the first stage masks."""
PROMPTS, EACH = 32, 4
"""Prompts answered beforehand, and answers of each side to each."""
TEMPERATURE = 2.0
"""Of these answers: a group of equal ones teaches nothing."""
OFFLINE, RATE = 40, 1e-4
"""Updates of the offline phase, and their rate."""


class Pair(NamedTuple):
    """Texts, and what the teacher says about them."""

    texts: Texts
    teacher: Float[Any, "B T V"]


def imitation(model: Any, params: Params, batch: Pair) -> Array:
    """Mean cross-entropy of answers under the teacher's predictions, nats."""
    logits = model.apply(params, batch.texts.ids)[:, :-1]
    target = jax.nn.softmax(batch.teacher[:, :-1])
    each = optax.softmax_cross_entropy(logits, target)
    return jnp.mean(each, where=jnp.asarray(batch.texts.answer)[:, 1:])


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model: Any, params: Params, ids: Array) -> Array:
    """Of a model."""
    return model.apply(params, ids)


def distilled(student: Any, teacher: Any, *, staged: bool, seed: int) -> Any:
    """The student after all updates; if `staged`, of a teacher restored in stages."""
    rng, state, parts = np.random.default_rng((seed, 41)), None, 20
    for part in range(parts):
        fraction = masked_fraction(part, parts, MASKED) if staged else 0.0
        masked = mask_teacher(teacher, fraction)
        batches = []
        for _ in range(STEPS // parts):
            texts = TASK.texts(rng, ROWS)
            batches.append(
                Pair(texts, np.asarray(logits_of(TEACHER, masked, texts.ids)))
            )
        student, state, _ = fit(
            STUDENT, student, batches, adam(1e-3), state, loss=imitation
        )
    return student


@functools.partial(jax.jit, static_argnums=0)
def answered(model: Any, params: Params, ids: Array, key: Array) -> Array:
    """The texts with answers drawn from the model."""
    first = TASK.length + 2

    def draw(place: Array, ids: Array) -> Array:
        logits = model.apply(params, ids)[:, place - 1] / TEMPERATURE
        token = jax.random.categorical(jax.random.fold_in(key, place), logits)
        return ids.at[:, place].set(token.astype(ids.dtype))

    return jax.lax.fori_loop(first, ids.shape[1], draw, ids)


def groups(
    teacher: Any, student: Any, seed: int
) -> tuple[Answers, Float[Array, "Q G"]]:
    """Answers of both sides to each prompt with their advantages, and rewards."""
    texts = TASK.texts(np.random.default_rng((seed, 42)), PROMPTS)
    keys = jax.random.split(jax.random.key(seed), 2)
    several = jnp.repeat(jnp.asarray(texts.ids), EACH, axis=0)
    sides = [
        answered(model, params, several, key).reshape(PROMPTS, EACH, -1)
        for model, params, key in zip(
            (TEACHER, STUDENT), (teacher, student), keys, strict=True
        )
    ]
    ids = jnp.concatenate(sides, axis=1).reshape(PROMPTS * 2 * EACH, -1)
    mask = jnp.repeat(jnp.asarray(texts.answer), 2 * EACH, axis=0)
    truth = jnp.repeat(jnp.asarray(texts.ids), 2 * EACH, axis=0)
    right = (ids == truth).all(axis=1).astype(jnp.float32)
    of_teacher = logits_of(TEACHER, teacher, ids)
    of_student = logits_of(STUDENT, student, ids)
    divergence = js_divergence(of_teacher, of_student, mask)
    found = scored_answers(ids, mask, right, of_teacher, of_student, group=2 * EACH)
    return found, transfer_reward(divergence.reshape(PROMPTS, 2 * EACH))


def offline_loss(model: Any, params: Params, answers: Answers) -> Array:
    """The loss of `fit`."""
    return masters_loss(model, params, answers)[0]


def run(seed: int) -> Outcome:
    """Distil with and without stages; then the offline phase."""
    start = jax.jit(TEACHER.init)(jax.random.key(seed))
    teacher, _ = train(TEACHER, start, TASK, steps=400, seed=seed, rows=64)
    fresh = jax.jit(STUDENT.init)(jax.random.key(seed + 1))
    plain = distilled(fresh, teacher, staged=False, seed=seed)
    staged = distilled(fresh, teacher, staged=True, seed=seed)
    answers, rewards = groups(teacher, staged, seed)
    final, _, _ = fit(
        STUDENT, staged, [answers] * OFFLINE, adam(RATE), loss=offline_loss
    )

    def percent(model: Any, params: Any) -> float:
        return 100 * accuracy(model, params, TASK, rows=1024)

    measures = {
        "teacher": percent(TEACHER, teacher),
        "teacher, first stage": percent(TEACHER, mask_teacher(teacher, MASKED)),
        "plain distillation": percent(STUDENT, plain),
        "staged mask": percent(STUDENT, staged),
        "after the offline phase": percent(STUDENT, final),
        "smallest reward": float(rewards.min()),
        "largest reward": float(rewards.max()),
        "groups with 0 and 1": float(
            ((rewards.min(axis=1) == 0) & (rewards.max(axis=1) == 1)).mean()
        ),
    }
    inside = measures["smallest reward"] >= 0 and measures["largest reward"] <= 1
    attained = measures["groups with 0 and 1"] == 1
    better = measures["staged mask"] >= measures["plain distillation"]
    gap = measures["teacher"] - measures["plain distillation"]
    return Outcome(measures, better and inside and attained, precondition=gap >= 3)


DEMONSTRATION = Demonstration(
    system="Masters",
    claim="A student of two layers is at least as accurate after learning from a "
    "teacher whose mask is lifted in stages as from the whole teacher, in as many "
    "updates; rewards for easy transfer are in [0, 1], with 0 and 1 in each group.",
    run=run,
    precondition="Distillation from the whole teacher leaves a gap of at least 3 "
    "points of accuracy.",
)
