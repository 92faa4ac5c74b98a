"""TIES: four tasks of one base merged into one model."""

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, tiny, train
from lt_mia_jax.transfer.weightspace.ties import mean, task_arithmetic, ties_merge

LENGTH = 4
PRETRAINING = (
    *(Task("copy", language, LENGTH) for language in (0, 1)),
    *(Task("reverse", language, LENGTH) for language in (0, 3)),
    *(Task("sort", language, LENGTH) for language in (0, 2, 4)),
)
"""Every task in language 0, and one of them in each other language."""
TARGETS = (
    Task("reverse", 1, LENGTH),
    Task("copy", 2, LENGTH),
    Task("sort", 3, LENGTH),
    Task("reverse", 4, LENGTH),
)
"""One for each expert: tasks and languages that the base never saw together."""
BASE_STEPS, STEPS, RATE = 2500, 100, 3e-4
LAMBDAS = (0.3, 0.5, 0.8, 1.0)
"""Of task arithmetic, tuned on questions of their own."""


def run(seed: int) -> Outcome:
    """Fine-tune one base on each task, merge, and score all tasks."""
    model = tiny()
    start = model.init(jax.random.key(seed))
    base, _ = train(model, start, PRETRAINING, steps=BASE_STEPS, seed=seed)
    experts = [
        train(model, base, task, steps=STEPS, seed=10 * seed + i, rate=RATE)[0]
        for i, task in enumerate(TARGETS)
    ]

    def score(params, test: int = 999) -> float:
        return float(np.mean([accuracy(model, params, t, seed=test) for t in TARGETS]))

    tuned = max(
        (task_arithmetic(base, experts, lam=lam) for lam in LAMBDAS),
        key=lambda params: score(params, 998),
    )
    own = [accuracy(model, e, t) for e, t in zip(experts, TARGETS, strict=True)]
    measures = {
        "base": score(base),
        "expert": float(np.mean(own)),
        "mean": score(mean(experts)),
        "arithmetic": score(tuned),
        "ties": score(ties_merge(base, experts)),
    }
    return Outcome(measures, passed=measures["ties"] > measures["mean"])


DEMONSTRATION = Demonstration(
    system="TIES",
    claim="Mean accuracy over four tasks is higher after TIES than after averaging.",
    run=run,
)
