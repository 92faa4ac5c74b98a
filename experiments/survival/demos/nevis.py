"""NEVIS'22: a stream of twelve tasks, judged by error and operations."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.execution import ExecutionConfig
from lt_mia_jax.transfer.selection.neighbors import choose_source, knn_error
from lt_mia_jax.transfer.streams.protocol import (
    ResourceUsage,
    fine_tuner,
    from_previous,
    from_scratch,
    pareto_front,
    program_flops,
    run_stream,
    task_stream,
)
from lt_mia_jax.trees import parameter_count

LENGTH, LAYERS, ROWS, EMBEDDED = 4, 2, 16, 64
TASKS = tuple(
    toy.Task(name, language, LENGTH, noise)
    for name in toy.NAMES[:3]
    for language in (0, 1)
    for noise in (0.0, 0.1)
)
"""Each function and language occurs twice, with clean and with noisy answers."""
SCALE = 5.0
"""Factor on the embedding at the start: without it a model from scratch learns too
little in so many updates to be a source for later tasks."""
STEPS, MOST, ENOUGH = 10, 150, 0.88
"""Updates between validations, updates at most, accuracy that ends the training."""


@functools.partial(jax.jit, static_argnums=0)
def embed(model: Any, params: Any, ids: Any) -> Any:
    """The last hidden states where the first answer symbol is predicted."""
    return model.apply(params, ids, capture=(LAYERS,))[1][LAYERS][:, LENGTH + 1]


def run(seed: int) -> Outcome:
    """Three learners on one order of the tasks."""
    model = LanguageModel(
        toy.tiny(layers=LAYERS).config, ExecutionConfig(unroll=LAYERS)
    )
    start = model.init(jax.random.key(seed))
    start["embedding"]["tokens"] *= SCALE
    order = np.random.default_rng(seed).permutation(len(TASKS))
    tasks = streaming.datasets([TASKS[i] for i in order], seed)
    optimizer, size = toy.adam(1e-3), parameter_count(start)

    def step(params: Any, state: Any, texts: toy.Texts) -> Any:
        gradient = jax.grad(lambda p: toy.answer_loss(model, p, texts))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    data = tasks[0][1]
    few = streaming.take(data.train, range(ROWS))
    of_step = program_flops(step, start, optimizer.init(start), few)
    of_answer = program_flops(
        functools.partial(streaming.guesses, model), start, data.validation.ids
    )
    of_embedding = program_flops(
        functools.partial(embed, model), start, data.train.ids[:EMBEDDED]
    )

    def fit(params: Any, data: streaming.Data) -> tuple[Any, ResourceUsage]:
        rng, state, flops = np.random.default_rng((seed, 10)), None, 0.0
        for _ in range(MOST // STEPS):
            index = rng.integers(len(data.train.ids), size=(STEPS, ROWS))
            batches = [streaming.take(data.train, rows) for rows in index]
            params, state, _ = toy.fit(model, params, batches, optimizer, state)
            flops += STEPS * of_step + of_answer
            if streaming.accuracy(model, params, data.validation) >= ENOUGH:
                break
        return params, ResourceUsage(flops, size)

    def predict(params: Any, texts: toy.Texts) -> tuple[Any, ResourceUsage]:
        guessed = streaming.guesses(model, params, texts.ids)
        return guessed, ResourceUsage(of_answer, size)

    def nearest(models: Any, data: streaming.Data) -> tuple[int | None, ResourceUsage]:
        parts = [texts.ids[:EMBEDDED] for texts in data]
        labels = [jax.numpy.asarray(ids[:, LENGTH + 2]) for ids in parts]
        errors = []
        for params in (start, *models):
            x, test = (embed(model, params, ids) for ids in parts)
            error = knn_error(x, labels[0], test, labels[1], n_classes=toy.VOCABULARY)
            errors.append(float(error))
        best = choose_source(errors) or 0  # 0 is the untrained model
        cost = 2 * len(errors) * of_embedding
        return (best - 1 if best else None), ResourceUsage(cost, size)

    points = {}
    for name, choose in (
        ("independent", from_scratch),
        ("previous", from_previous),
        ("k-NN", nearest),
    ):
        learner = fine_tuner(start, fit, predict, choose)
        events = task_stream(tasks, every=False)
        points[name] = run_stream(learner, events, streaming.score).point
    pair = np.array([points["k-NN"], points["independent"]])
    return Outcome(
        {
            f"{name} {what}": value
            for name, (error, flops) in points.items()
            for what, value in (("error", error), ("GFLOP", flops / 1e9))
        },
        passed=pareto_front(pair).tolist() == [True, False],
    )


DEMONSTRATION = Demonstration(
    "NEVIS'22",
    "Fine-tuning the earlier model that k nearest neighbors choose dominates "
    "independent training in mean error and operations, search included.",
    run,
)
