"""LIBERO: replay forgets less than sequential fine-tuning, by its own metrics."""

import jax
import numpy as np

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.transfer.streams import metrics
from lt_mia_jax.transfer.streams.protocol import run_stream, task_stream

TASKS = (
    toy.Task("copy", 0, length=4),
    toy.Task("reverse", 0, length=4),
    toy.Task("copy", 1, length=4),
    toy.Task("sort", 0, length=4),
    toy.Task("reverse", 2, length=4),
    toy.Task("sort", 1, length=4),
)
LEARNERS = {"seq": {}, "er": {"share": 0.2}, "ewc": {"ewc": True}}
MATRIX = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.3, 0.6, 1.0]])
CURVES = np.array([[0.0, 0.6, 0.9], [0.2, 0.8, 0.4], [0.4, 1.0, 1.0]])
"""Worked out by hand: FWT .5, .6, .8; NBT .5, .2; AUC 1.3 / 3, .6, .8."""


def exact() -> bool:
    """Whether the metrics of `MATRIX` are those worked out by hand."""
    found = [metrics.fwt(CURVES), metrics.nbt(MATRIX), metrics.auc(MATRIX, CURVES)]
    known = [(0.5, 0.6, 0.8), (0.5, 0.2), (1.3 / 3, 0.6, 0.8)]
    return all(np.allclose(a, b) for a, b in zip(found, known, strict=True))


def run(seed: int) -> Outcome:
    """Six tasks, one after the other, under three learners."""
    model = toy.tiny(layers=2)
    start = model.init(jax.random.key(seed))
    order = np.random.default_rng(seed).permutation(len(TASKS))
    tasks = streaming.datasets([TASKS[i] for i in order], seed)
    found: dict[str, float] = {}
    for name, settings in LEARNERS.items():
        learner = streaming.sequential(
            model, start, seed=seed, steps=120, checkpoints=3, rate=1e-3, **settings
        )
        result = run_stream(learner, task_stream(tasks), streaming.score)
        curves = np.array(result.state.curves)
        found |= {
            f"{name} FWT": float(metrics.fwt(curves).mean()),
            f"{name} NBT": float(metrics.nbt(result.matrix).mean()),
            f"{name} AUC": float(metrics.auc(result.matrix, curves).mean()),
            f"{name} final": float(metrics.final_mean(result.matrix)),
        }
    exactly = exact()
    return Outcome(
        {"exact metrics": float(exactly), **found},
        passed=exactly and found["er NBT"] < found["seq NBT"],
    )


DEMONSTRATION = Demonstration(
    "LIBERO",
    "The metrics are exact on a matrix worked out by hand, and the NBT of experience "
    "replay is below that of sequential fine-tuning on six tasks.",
    run,
)
