"""TMI: entropy of features within classes against accuracy after fine-tuning."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.transfer.selection.tmi import h_score, probe_accuracy, tmi

LENGTH, DEPTHS, CHUNK = 4, (1, 3), 40
SOURCES = (
    toy.Task("copy", 0, LENGTH),
    toy.Task("reverse", 1, LENGTH),
    toy.Task("sort", 2, LENGTH),
)
TARGETS = (
    toy.Task("copy", 1, LENGTH),
    toy.Task("reverse", 2, LENGTH),
    toy.Task("sort", 0, LENGTH),
)


@functools.partial(jax.jit, static_argnums=0)
def features(model: Any, params: Any, ids: Any) -> Any:
    """The last hidden states where the first answer symbol is predicted."""
    last = model.config.layers
    return model.apply(params, ids, capture=(last,))[1][last][:, LENGTH + 1]


def checkpoints(seed: int) -> list[tuple[Any, Any]]:
    """Twelve models: two depths, three tasks, after 40 and after 160 updates."""
    found = []
    for depth in DEPTHS:
        model = toy.tiny(layers=depth)
        for number, task in enumerate(SOURCES):
            params = model.init(jax.random.key(seed))
            rng, state = np.random.default_rng((seed, 11, number)), None
            for part in range(4):
                batches = [task.texts(rng, 16) for _ in range(CHUNK)]
                params, state, _ = toy.fit(
                    model, params, batches, toy.adam(1e-3), state
                )
                if part in (0, 3):
                    found.append((model, params))
    return found


def run(seed: int) -> Outcome:
    """Three scores of twelve checkpoints on three targets, against the truth."""
    models = checkpoints(seed)
    taus: dict[str, list[float]] = {"TMI": [], "H-score": [], "probe": []}
    clamped = []
    for number, (_, data, test, _) in enumerate(streaming.datasets(TARGETS, seed)):
        rng = np.random.default_rng((seed, 12, number))
        index = rng.integers(len(data.train.ids), size=(CHUNK, 16))
        batches = [streaming.take(data.train, rows) for rows in index]
        first = np.asarray(data.train.ids)[:, LENGTH + 2]
        symbols = np.unique(first, return_inverse=True)[1]
        y, classes = jnp.asarray(symbols), int(symbols.max()) + 1
        found: dict[str, list[float]] = {name: [] for name in (*taus, "truth")}
        for model, params in models:
            x = features(model, params, data.train.ids)
            score, share = tmi(x, y, classes)
            clamped.append(float(share))
            found["TMI"].append(float(score))
            found["H-score"].append(float(h_score(x, y, classes)))
            halves = x[:250], y[:250], x[250:], y[250:]
            found["probe"].append(float(probe_accuracy(*halves, classes)))
            tuned, _, _ = toy.fit(model, params, batches, toy.adam(1e-3))
            found["truth"].append(streaming.accuracy(model, tuned, test))
        for name, values in taus.items():
            both = kendalltau(found[name], found["truth"])
            values.append(float(np.asarray(both)[0]))
    return Outcome(
        {
            **{
                f"{name} tau {number}": value
                for name, values in taus.items()
                for number, value in enumerate(values)
            },
            "clamped": float(np.mean(clamped)),
        },
        passed=sum(tau > 0 for tau in taus["TMI"]) >= 2,
    )


DEMONSTRATION = Demonstration(
    "TMI",
    "Kendall's tau of TMI and accuracy after fine-tuning is positive over twelve "
    "checkpoints on at least two of three targets.",
    run,
)
