"""TIES: four tasks of one base merged into one model."""

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import NAMES, Task, accuracy, tiny, train
from lt_mia_jax.transfer.weightspace.ties import mean, task_arithmetic, ties_merge

BASE_STEPS, STEPS, RATE = 500, 80, 3e-4
LAMBDAS = (0.3, 0.5, 0.8, 1.0)
"""Of task arithmetic, tuned on questions of their own."""


def run(seed: int) -> Outcome:
    """Fine-tune one base on each task, merge, and score all tasks."""
    model = tiny()
    tasks = [Task(name) for name in NAMES]
    start = model.init(jax.random.key(seed))
    base, _ = train(model, start, tasks, steps=BASE_STEPS, seed=seed)
    experts = [
        train(model, base, task, steps=STEPS, seed=10 * seed + i, rate=RATE)[0]
        for i, task in enumerate(tasks)
    ]

    def score(params, test: int = 999) -> float:
        return float(np.mean([accuracy(model, params, t, seed=test) for t in tasks]))

    tuned = max(
        (task_arithmetic(base, experts, lam=lam) for lam in LAMBDAS),
        key=lambda params: score(params, 998),
    )
    own = [accuracy(model, e, t) for e, t in zip(experts, tasks, strict=True)]
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
