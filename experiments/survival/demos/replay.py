"""Experience replay of pretrained models: a small buffer is enough for them."""

import jax
import numpy as np

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.transfer.streams import metrics
from lt_mia_jax.transfer.streams.protocol import run_stream, task_stream

LENGTH = 4
STREAM = (
    toy.Task("sort", 0, LENGTH),
    toy.Task("copy", 1, LENGTH),
    toy.Task("reverse", 2, LENGTH),
)
"""The first is new to the pretrained model, since other languages sort backwards, so
that there is something to recover; the others come in any order."""
BEFORE = tuple(
    task
    for name in toy.NAMES[:3]
    for language in range(4)
    if (task := toy.Task(name, language, LENGTH)) not in STREAM
)
"""The same functions and languages, in other pairs."""
SHARES = (0.0, 0.02, 0.2)
RATE, STEPS, PARTS = 5e-4, 240, 24
SCALE = 5.0
"""Factor on the embedding at the start: without it a model from scratch learns too
little of each task to have much to forget."""


def run(seed: int) -> Outcome:
    """Three tasks under three buffers, pretrained and from scratch; then recovery."""
    model = toy.tiny(layers=2)
    scratch = model.init(jax.random.key(seed))
    scratch["embedding"]["tokens"] *= SCALE
    pretrained, _ = toy.train(model, scratch, BEFORE, steps=1800, seed=seed)
    order = [0, *np.random.default_rng(seed).permutation([1, 2])]
    tasks = streaming.datasets([STREAM[i] for i in order], seed)
    found: dict[str, float] = {}
    for name, start in (("pretrained", pretrained), ("scratch", scratch)):
        for share in SHARES:
            learner = streaming.sequential(
                model,
                start,
                seed=seed,
                steps=STEPS,
                checkpoints=PARTS,
                rate=RATE,
                share=share,
            )
            result = run_stream(learner, task_stream(tasks), streaming.score)
            where = f"{name} {share:.0%}"
            found[f"{where} SR"] = float(np.diagonal(result.matrix).mean())
            found[f"{where} NBT"] = float(metrics.nbt(result.matrix).mean())
            if name == "pretrained" and share == 0:
                lost = result.matrix[0, 0] - result.matrix[-1, 0]
                found["forgotten of the first task"] = float(lost)
                found |= recovery(model, result, tasks[0], seed)
    return Outcome(
        found,
        passed=found["pretrained 2% NBT"] < found["scratch 2% NBT"]
        and found["recovery steps"] < found["original steps"],
    )


def recovery(model, result, task, seed: int) -> dict[str, float]:
    """Updates to 95 % of the first score on the first task, at first and once more."""
    steps = np.arange(PARTS + 1) * (STEPS // PARTS)
    learner = streaming.sequential(
        model,
        result.state.params,
        seed=seed,
        steps=STEPS,
        checkpoints=PARTS,
        rate=RATE,
    )
    again = run_stream(learner, task_stream([task]), streaming.score)
    curves = {"original": result.state.curves[0], "recovery": again.state.curves[0]}
    best = max(curves["original"])
    return {
        f"{name} steps": float(metrics.recovery_steps(steps, np.array(curve), best))
        for name, curve in curves.items()
    }


DEMONSTRATION = Demonstration(
    "VLA experience replay",
    "With a buffer of 2 %, the NBT of a pretrained model is below that of one from "
    "scratch, and a forgotten task needs fewer updates than at first.",
    run,
)
