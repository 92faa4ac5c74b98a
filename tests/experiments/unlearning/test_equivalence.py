"""The table of draws: on values whose answer is known."""

import numpy as np

from experiments.unlearning.equivalence import FULL, RETRAINED, count, table


def values(probability, ratio):
    return {"probability": probability, "truth_ratio": -np.log(ratio)}


def test_draws_of_what_was_not_forgotten_and_of_what_was():
    rng = np.random.default_rng(0)
    low, ratio = rng.uniform(0.3, 0.6, 80), rng.uniform(0.9, 1.1, 80)
    models = {
        FULL: values(rng.uniform(0.95, 1, 80), rng.uniform(0.6, 0.8, 80)),
        "again": values(low + rng.normal(0, 0.02, 80), ratio),
        RETRAINED: values(low, ratio),
    }

    def some(size):
        return rng.choice(80, size, replace=False)

    few = count(models, FULL, lambda: some(3), 20)
    # Three records: the old rule never fails, the new one never says a thing.
    assert few == (0, 0, 20)
    many = count(models, FULL, lambda: some(40), 20)
    assert many == (0, 20, 0)
    assert count(models, "again", lambda: some(40), 20)[:2] == (20, 0)
    lines = list(table(models, {"40": lambda: some(40)}, 10, 0.25))
    assert lines[-1] == "| 40 | 0.0 / 100.0 / 0.0 | 100.0 / 0.0 / 100.0 |"
