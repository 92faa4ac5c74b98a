"""How many trailing layers to tune, and how: greedy depth, Bayesian optimization.

Source: "AutoTune: Automatically Tuning Convolutional Neural Networks for Improved
Transfer Learning". Kept: layers are opened one by one from the end, each with a search
over its settings, until validation stalls. Not kept: image models; and the released
code judges a depth by the last evaluation of its search, here it is the best.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from lt_mia_jax.arrays import Float
from lt_mia_jax.transfer.selection import gaussian_process

Settings = tuple[tuple[float, ...], ...]
"""One point of the search space for each open layer, from the end of the model."""


class Evaluation(NamedTuple):
    """One training run, and its validation score."""

    settings: Settings
    score: float


class AutoTuned(NamedTuple):
    """The best evaluation, and all of them in their order."""

    best: Evaluation
    history: tuple[Evaluation, ...]


def autotune(
    evaluate: Callable[[Settings], float],
    candidates: Float[np.ndarray, "m d"],
    *,
    depth: int,
    evaluations: int = 20,
    start: float = -np.inf,
) -> AutoTuned:
    """Open layers one by one as long as the best validation score improves.

    At each depth the settings of the layers above are kept, and those of the new layer
    are searched among `candidates` by expected improvement; none is tried twice.

    `evaluate` trains with some settings and returns the validation score. Rows of
    `candidates` are settings of one layer; columns are scaled to [0, 1], so give rates
    as logarithms. At most `depth` layers are opened, each with so many `evaluations`;
    `start` is the score without any.

    Example:
      >>> score = lambda settings: [0.7, 0.9, 0.8][len(settings) - 1]
      >>> found = autotune(score, np.array([[0.1]]), depth=3)
      >>> found.best.score, len(found.history)
      (0.9, 3)
    """
    points = np.asarray(candidates, float)
    if depth < 1 or evaluations < 1 or not len(points):
        raise ValueError("autotune: no depth, no evaluations or no candidates")
    unit = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-30)
    best, history = Evaluation((), start), list[Evaluation]()
    for _ in range(depth):
        tried, scores = list[int](), list[float]()
        while len(tried) < min(evaluations, len(points)):
            index = next_candidate(unit, tried, scores)
            settings = (*best.settings, tuple(points[index].tolist()))
            tried.append(index)
            scores.append(float(evaluate(settings)))
            history.append(Evaluation(settings, scores[-1]))
        winner = max(history[-len(tried) :], key=lambda one: one.score)
        if not winner.score > best.score:
            break
        best = winner
    return AutoTuned(best, tuple(history))


def next_candidate(
    x: Float[np.ndarray, "m d"], tried: list[int], scores: list[float]
) -> int:
    """The row of largest expected improvement; the first is nearest to the center."""
    if not tried:
        return int(np.argmin(((x - x.mean(axis=0)) ** 2).sum(axis=1)))
    mean, deviation = gaussian_process.fit(x[tried], np.array(scores)).predict(x)
    over, spread = mean - max(scores), np.maximum(deviation, 1e-12)
    z = over / spread
    gain = over * ndtr(z) + spread * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    gain[tried] = -np.inf
    return int(np.argmax(gain))
