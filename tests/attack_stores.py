"""Feature stores in memory, and a training run that can be started as a program."""

import sys
from pathlib import Path

import numpy as np

from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.recipe import TrainConfig

STEPS, COLUMNS = 8, 21


class MemoryStore:
    """A feature store whose members are shifted in one column by `signal`."""

    def __init__(self, name, n=96, *, seed=0, signal=1.0, steps=STEPS, columns=COLUMNS):
        rng = np.random.default_rng(seed)
        self.name, self.n = name, n
        self.meta = {"target": f"{name}-target", "reference": "base", "corpus": name}
        self.ids = tuple(f"{name}-{i}" for i in range(n))
        self.labels = tuple(int(x) for x in np.arange(n) % 2)
        self.split = tuple(
            ("train", "train", "validation", "test")[i // 2 % 4] for i in range(n)
        )
        valid = rng.integers(1, steps, size=n)
        self.mask = np.arange(steps)[None] < valid[:, None]
        values = rng.normal(size=(n, steps, columns))
        values[:, :, 3] += signal * np.array(self.labels)[:, None]
        self.values = (values * self.mask[..., None]).astype(np.float32)

    @property
    def n_steps(self):
        steps = np.arange(1, self.mask.shape[1] + 1)
        return np.where(self.mask, steps, 0).max(axis=1)

    def features(self, rows):
        return self.values[rows], self.mask[rows]


def stores():
    return [
        MemoryStore("a", 96, seed=1),
        MemoryStore("b", 40, seed=2, signal=0.7),
    ]


SMALL = ClassifierConfig(
    inputs=COLUMNS, length=STEPS, width=16, heads=2, layers=1, feed_forward=16
)


def recipe(**changes):
    settings = {
        "epochs": 6,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "warmup_epochs": 1.0,
        "save_seconds": 0.0,
        **changes,
    }
    return TrainConfig(**settings)


if __name__ == "__main__":
    from lt_mia_jax.attacks.learned.train import train_attack

    train_attack(stores(), SMALL, recipe(), Path(sys.argv[1]))
