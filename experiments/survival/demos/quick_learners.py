"""Quick learners: after training with instructions, less target data is enough."""

import jax
import numpy as np

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.transfer.streams.metrics import data_to_match

LENGTH = 4
TARGET = toy.Task("reverse", 1, LENGTH)
INSTRUCTED = tuple(
    toy.Task(name, language, LENGTH)
    for language in (0, 1, 2)
    for name in toy.NAMES[:3]
    if (name, language) != (TARGET.name, TARGET.language)
)
"""Three tasks in three languages, each named by its tag, without the target."""
PLAIN = tuple(toy.Task("copy", language, LENGTH) for language in (0, 1, 2))
"""Reconstruction of strings of the same languages, for as many updates."""
FRACTIONS = np.array([0.02, 0.05, 0.1, 0.3, 1.0])
ROWS = 400


def run(seed: int) -> Outcome:
    """Scores on the target by share of its data, from two kinds of pretraining."""
    model = toy.tiny(layers=2)
    start = model.init(jax.random.key(seed))
    [(_, data, test, _)] = streaming.datasets([TARGET], seed, rows=ROWS)
    curves = {}
    for name, tasks in (("instructed", INSTRUCTED), ("plain", PLAIN)):
        params, _ = toy.train(
            model, start, tasks, steps=1500, seed=seed, rate=1e-3, rows=32
        )
        scores = []
        for fraction in FRACTIONS:
            rng = np.random.default_rng((seed, 9))
            rows = rng.integers(round(fraction * ROWS), size=(250, 16))
            batches = [streaming.take(data.train, index) for index in rows]
            tuned, _, _ = toy.fit(model, params, batches, toy.adam(1e-3))
            scores.append(streaming.accuracy(model, tuned, test))
        curves[name] = np.array(scores)
    reference = float(curves["plain"][-1])
    needed = {
        name: float(data_to_match(FRACTIONS, scores, reference))
        for name, scores in curves.items()
    }
    return Outcome(
        {
            "reference": reference,
            **{f"{name} p*": value for name, value in needed.items()},
            **{f"{name} at 2 %": float(scores[0]) for name, scores in curves.items()},
            **{f"{name} at all": float(scores[-1]) for name, scores in curves.items()},
        },
        passed=needed["instructed"] <= needed["plain"] / 2,
    )


DEMONSTRATION = Demonstration(
    "Quick Learners",
    "The share of target data with which the instructed model reaches the plain one's "
    "score on all data is at most half of the plain one's own.",
    run,
)
