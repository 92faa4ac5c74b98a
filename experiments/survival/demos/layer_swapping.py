"""Layer Swapping: a task from one language, the layers of another around it.

In these tiny models much of the task is in the first layer, which a swap takes away, so
that the claim may well fail here.
"""

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, tiny, train
from lt_mia_jax.transfer.weightspace.swap import blend_layers, layer_swap
from lt_mia_jax.transfer.weightspace.ties import mean

LAYERS, LENGTH = 6, 4
PRETRAINING = tuple(
    Task(name, language, LENGTH) for name in ("copy", "sort") for language in (0, 1)
)
"""Both languages, without the task."""
TASK, TARGET = (Task("reverse", language, LENGTH) for language in (0, 1))
"""Not `sort`: language 1 is written backwards, so that it would be another order."""
LANGUAGE = PRETRAINING[1::2]
BASE_STEPS, STEPS, RATE = 1000, 100, 1e-3


def run(seed: int) -> Outcome:
    """A task expert in language 0, a language expert without the task, and swaps."""
    model = tiny(layers=LAYERS)
    start = model.init(jax.random.key(seed))
    base, _ = train(model, start, PRETRAINING, steps=BASE_STEPS, seed=seed)
    task, _ = train(model, base, TASK, steps=STEPS, seed=10 * seed, rate=RATE)
    lang, _ = train(model, base, LANGUAGE, steps=STEPS, seed=10 * seed + 1, rate=RATE)
    middle = np.zeros(LAYERS, np.float32)
    middle[2:-2] = 1.0
    models = {
        "task": task,
        "language": lang,
        "mean": mean([task, lang]),
        "swapped": layer_swap(task, lang, bottom=1, top=1, embed="mean", head="mean"),
        "middle": blend_layers(task, lang, middle, embed="mean", head="mean"),
    }
    measures = {name: accuracy(model, p, TARGET) for name, p in models.items()}
    measures["task in its own language"] = accuracy(model, task, TASK)
    best = max(measures[name] for name in ("task", "language", "mean"))
    return Outcome(measures, passed=measures["swapped"] > best >= measures["middle"])


DEMONSTRATION = Demonstration(
    system="Layer Swapping",
    claim=(
        "With the outer layers of the language expert the task expert solves the task "
        "in that language better than both experts and their average; with its middle "
        "layers it does not."
    ),
    run=run,
)
