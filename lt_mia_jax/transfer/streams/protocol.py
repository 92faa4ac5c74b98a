"""Streams of tasks: events, learners, success matrix, compute.

Source: NEVIS'22, arXiv 2211.11747. Kept: events, learners, error against compute, and
the baselines (independent, previous, chosen source). Not kept: its data sets and its
search for hyper-parameters, whose cost a learner that searches must report.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Bool, Float


class Train(NamedTuple):
    """The next task to learn."""

    task: str
    data: Any


class Predict(NamedTuple):
    """A test of one task; the learner does not see the targets."""

    task: str
    inputs: Any
    targets: Any


@dataclass(frozen=True)
class ResourceUsage:
    """What a computation took: operations, and most parameters held at once."""

    flops: float = 0.0
    peak_params: int = 0

    def __add__(self, other: "ResourceUsage") -> "ResourceUsage":
        peak = max(self.peak_params, other.peak_params)
        return ResourceUsage(self.flops + other.flops, peak)


Choice = tuple[int | None, ResourceUsage]  # a model, None for the untrained one
Models = dict[str, Any]  # one for each task, in the order of training


class Learner(NamedTuple):
    """Three pure functions; two of them also return what they took."""

    init: Callable[[], Any]
    train: Callable[[Any, Train], tuple[Any, ResourceUsage]]
    predict: Callable[[Any, str, Any], tuple[Any, ResourceUsage]]


class StreamResult(NamedTuple):
    """What a learner did on a stream, what it took, and its last state."""

    tasks: tuple[str, ...]
    matrix: Float[np.ndarray, "K K"]
    """Score on task i after task k; NaN where the stream did not ask."""
    training: tuple[ResourceUsage, ...]
    prediction: ResourceUsage
    state: Any

    @property
    def point(self) -> tuple[float, float]:
        """Mean error right after training, and cumulative FLOPs of training."""
        error = 1 - float(np.diagonal(self.matrix).mean())
        return error, math.fsum(usage.flops for usage in self.training)


def task_stream(
    tasks: Sequence[tuple[str, Any, Any, Any]], *, every: bool = True
) -> list[Train | Predict]:
    """Events of tasks (name, training data, test inputs, test targets).

    After each training all tasks are tested, or without `every` the trained one alone.
    """
    tests = [Predict(name, inputs, targets) for name, _, inputs, targets in tasks]
    events: list[Train | Predict] = []
    for (name, data, _, _), own in zip(tasks, tests, strict=True):
        events += [Train(name, data), *(tests if every else [own])]
    return events


def run_stream(
    learner: Learner,
    events: Iterable[Train | Predict],
    score: Callable[[Any, Any], float],
) -> StreamResult:
    """Play a stream on a learner and fill its success matrix.

    `score` turns (outputs, targets) into an accuracy in [0, 1]. Each task is trained
    once, the first before any test; else a `ValueError`.
    """
    state, tasks, training = learner.init(), list[str](), list[ResourceUsage]()
    prediction, found = ResourceUsage(), dict[tuple[int, str], float]()
    for event in events:
        if isinstance(event, Train):
            if event.task in tasks:
                raise ValueError(f"run_stream: task {event.task!r} is trained twice")
            state, usage = learner.train(state, event)
            tasks.append(event.task)
            training.append(usage)
            continue
        if not tasks:
            raise ValueError("run_stream: the stream must begin with training")
        outputs, usage = learner.predict(state, event.task, event.inputs)
        prediction += usage
        found[len(tasks) - 1, event.task] = float(score(outputs, event.targets))
    if unknown := sorted({task for _, task in found} - set(tasks)):
        raise ValueError(f"run_stream: {unknown} are tested and never trained")
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for (row, task), value in found.items():
        matrix[row, tasks.index(task)] = value
    return StreamResult(tuple(tasks), matrix, tuple(training), prediction, state)


def fine_tuner(
    start: Any,
    fit: Callable[[Any, Any], tuple[Any, ResourceUsage]],
    predict: Callable[[Any, Any], tuple[Any, ResourceUsage]],
    choose: Callable[[Sequence[Any], Any], Choice],
) -> Learner:
    """A learner with a model for each task: `fit(model, data)` of an earlier one.

    `choose(models so far, data)` is the index of the one to start from, or None for
    `start`. All three functions also return what they took. A task that was not trained
    yet is answered by the newest model.
    """

    def train(state: Models, event: Train) -> tuple[Models, ResourceUsage]:
        models = list(state.values())
        index, choice = choose(models, event.data)
        model, usage = fit(start if index is None else models[index], event.data)
        return {**state, event.task: model}, choice + usage

    def answer(state: Models, task: str, inputs: Any) -> tuple[Any, ResourceUsage]:
        return predict(state.get(task, list(state.values())[-1]), inputs)

    return Learner(dict, train, answer)


def from_scratch(models: Sequence[Any], data: Any) -> Choice:
    """Every task starts from the untrained model."""
    return None, ResourceUsage()


def from_previous(models: Sequence[Any], data: Any) -> Choice:
    """Every task starts from the model of the one before."""
    return (len(models) - 1 if models else None), ResourceUsage()


def program_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, as XLA's cost analysis counts them.

    It counts the body of a loop once, so a program with a loop is a `ValueError`: count
    one step, with unrolled layers (`ExecutionConfig(unroll=layers)`), and multiply.

    Example:
      >>> program_flops(jax.numpy.dot, np.ones((4, 8)), np.ones((8, 2)))
      128.0
    """
    compiled = jax.jit(function).lower(*args).compile()
    if " while(" in str(compiled.as_text()):
        raise ValueError("program_flops: a loop counts once; unroll it, or multiply")
    return float((compiled.cost_analysis() or {})["flops"])


def pareto_front(points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
    """Which (error, FLOPs) points have no other as small in both and smaller in one."""
    a, b = points[:, None], points[None]
    dominates = (a <= b).all(axis=-1) & (a < b).any(axis=-1)
    return np.asarray(~dominates.any(axis=0))
