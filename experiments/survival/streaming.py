"""What the demonstrations on streams share: a learner that keeps one model.

It trains on each task in turn, with or without replayed items and an EWC pull, and
keeps the best checkpoint of each task.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.survival import toy
from lt_mia_jax.arrays import Array
from lt_mia_jax.training.fisher import diagonal_fisher, running_fisher
from lt_mia_jax.training.transforms.anchor import ewc_pull
from lt_mia_jax.transfer.streams.protocol import Learner, ResourceUsage, Train
from lt_mia_jax.transfer.streams.replay import EMPTY, Replay, mixed_batch, remember

PULL = 100.0
"""Strength of the EWC pull, for losses of mean token cross-entropy."""


class State(NamedTuple):
    """What the learner carries from task to task."""

    params: Any
    replay: Replay = EMPTY
    curves: tuple[tuple[float, ...], ...] = ()
    """Validation accuracy of each task at each checkpoint, the untrained one first."""
    fisher: Any = None


class Data(NamedTuple):
    """What a `Train` event holds."""

    train: toy.Texts
    validation: toy.Texts


def datasets(
    tasks: Sequence[toy.Task], seed: int, *, rows: int = 500, tests: int = 128
) -> list[tuple[str, Data, toy.Texts, toy.Texts]]:
    """Tasks as `task_stream` takes them; test inputs and targets are the same texts."""
    found = []
    for number, task in enumerate(tasks):
        rng = np.random.default_rng((seed, 7, number))
        train, valid, test = (task.texts(rng, n) for n in (rows, tests, tests))
        name = f"{number}: {task.name} in {task.language}"
        found.append((name, Data(train, valid), test, test))
    return found


def take(texts: toy.Texts, index: Any) -> toy.Texts:
    """Some of the texts."""
    return toy.Texts(np.asarray(texts.ids)[index], np.asarray(texts.answer)[index])


@functools.partial(jax.jit, static_argnums=0)
def guesses(model: Any, params: Any, ids: Array) -> Array:
    """The likeliest next tokens at each position but the last."""
    return model.apply(params, ids)[:, :-1].argmax(axis=-1)


def score(guessed: Any, texts: toy.Texts) -> float:
    """Share of answer tokens that are right."""
    answer = np.asarray(texts.answer)[:, 1:]
    return float((np.asarray(guessed) == np.asarray(texts.ids)[:, 1:])[answer].mean())


def accuracy(model: Any, params: Any, texts: toy.Texts) -> float:
    """`score` under teacher forcing."""
    return score(guesses(model, params, texts.ids), texts)


def negative_log_likelihood(model: Any, params: Any, texts: toy.Texts) -> Array:
    """Of each text, summed over its answer."""
    logits = model.apply(params, texts.ids)[:, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, texts.ids[:, 1:])
    return (nll * texts.answer[:, 1:]).sum(axis=1)


def sequential(
    model: Any,
    start: Any,
    *,
    seed: int,
    steps: int,
    checkpoints: int,
    rate: float,
    rows: int = 16,
    share: float = 0.0,
    ewc: bool = False,
) -> Learner:
    """A learner of one model.

    Args:
      model: of the toy zoo.
      start: parameters before the first task.
      seed: decides batches and replay.
      steps: updates on a task.
      checkpoints: after so many equal parts of these.
      rate: of Adam, which starts anew with each task.
      rows: texts of the task in a batch; as many are replayed once there are some.
      share: share of the texts of a task that is stored after it.
      ewc: pull the parameters to those after the last task.
    """
    zeros = jax.tree.map(np.zeros_like, start)
    optimizer = toy.adam(rate)
    if ewc:
        optimizer = optax.chain(ewc_pull(PULL, fisher=zeros), optimizer)
    per_example = functools.partial(negative_log_likelihood, model)
    draw = jax.jit(mixed_batch)

    def train(state: State, event: Train) -> tuple[State, ResourceUsage]:
        number, data = len(state.curves), event.data
        rng, key = np.random.default_rng((seed, 8, number)), jax.random.key(seed)
        params, replay, fisher = state.params, state.replay, state.fisher
        opt: Any = jax.jit(optimizer.init)(params)
        if ewc and fisher is not None:
            opt = (opt[0]._replace(fisher=fisher), *opt[1:])
        best, curve = params, [accuracy(model, params, data.validation)]
        for part in range(checkpoints):
            batches = []
            for step in range(steps // checkpoints):
                index = rng.integers(len(data.train.ids), size=rows)
                fold = jax.random.fold_in(key, (number * 100 + part) * 1000 + step)
                batches.append(draw(take(data.train, index), replay, fold))
            params, opt, _ = toy.fit(model, params, batches, optimizer, opt)
            curve.append(accuracy(model, params, data.validation))
            if curve[-1] > max(curve[:-1]):
                best = params
        replay = remember(
            replay, data.train, jax.random.fold_in(key, number), share=share
        )
        if ewc:  # the running sum of LIBERO
            new = diagonal_fisher(per_example, best, [take(data.train, range(64))])
            fisher = running_fisher(fisher, new)
        after = State(best, replay, (*state.curves, tuple(curve)), fisher)
        return after, ResourceUsage()

    def predict(state: State, task: str, texts: toy.Texts) -> tuple[Any, ResourceUsage]:
        return guesses(model, state.params, texts.ids), ResourceUsage()

    return Learner(lambda: State(start), train, predict)
