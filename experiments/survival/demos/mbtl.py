"""MBTL: three lengths to train on, chosen so that all eight are served."""

import itertools

import jax
import numpy as np

from experiments.survival import streaming, toy
from experiments.survival.demonstration import Demonstration, Outcome
from lt_mia_jax.arrays import Float
from lt_mia_jax.transfer.selection.mbtl import (
    coverage,
    equidistant,
    greedy_oracle,
    mbtl,
)

LENGTHS = np.arange(1, 9)
BUDGET, STEPS, ROWS = 3, 200, 24
SLOPE = 0.2
"""Accuracy lost by length of distance, a constant of the problem."""


def padded(length: int, rng: np.random.Generator, rows: int) -> toy.Texts:
    """Texts of the copy task, of one length, in arrays for the longest one."""
    texts = toy.Task("copy", length=length).texts(rng, rows)
    wide = ((0, 0), (0, 2 * int(LENGTHS[-1] - length)))
    return toy.Texts(np.pad(texts.ids, wide), np.pad(np.asarray(texts.answer), wide))


def batch(length: int, rng: np.random.Generator) -> toy.Texts:
    """A third of the texts is one symbol shorter, a third one longer, where allowed."""
    near = np.clip([length - 1, length, length + 1], LENGTHS[0], LENGTHS[-1])
    parts = [padded(int(k), rng, ROWS // 3) for k in near]
    return toy.Texts(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def transfer_matrix(seed: int) -> Float[np.ndarray, "n n"]:
    """Accuracy on every length of a model trained around each one."""
    model = toy.tiny(layers=2)
    start = model.init(jax.random.key(seed))
    tests = [padded(int(k), np.random.default_rng((seed, 13)), 128) for k in LENGTHS]
    rows = []
    for length in LENGTHS:
        rng = np.random.default_rng((seed, 14, int(length)))
        batches = [batch(int(length), rng) for _ in range(STEPS)]
        params, _, _ = toy.fit(model, start, batches, toy.adam(1e-3))
        rows.append([streaming.accuracy(model, params, test) for test in tests])
    return np.array(rows)


def run(seed: int) -> Outcome:
    """Coverage of four ways to choose; that of random choice is its expectation."""
    transfer = transfer_matrix(seed)
    n = len(LENGTHS)
    chance = [
        coverage(transfer, picks) for picks in itertools.combinations(range(n), BUDGET)
    ]
    found = {
        "MBTL": coverage(
            transfer, mbtl(LENGTHS.astype(float), transfer, BUDGET, SLOPE)
        ),
        "random": float(np.mean(chance)),
        "equidistant": coverage(transfer, equidistant(n, BUDGET)),
        "greedy oracle": coverage(transfer, greedy_oracle(transfer, BUDGET)),
    }
    return Outcome(
        found,
        passed=found["MBTL"] > found["random"]
        and found["MBTL"] >= 0.9 * found["greedy oracle"],
    )


DEMONSTRATION = Demonstration(
    "MBTL",
    "With three of eight lengths, mean accuracy on all of them is above that of random "
    "choice and at least 0.9 of the greedy oracle's.",
    run,
)
