"""Which contexts to train on: MBTL, and what it must be compared with.

`transfer[i, j]` is the score on context `j` of a model trained on context `i`. Picks
are indices of contexts; values of contexts enter distances only.

Source: "Model-Based Transfer Learning for Contextual Reinforcement Learning", arXiv
2408.04498. Kept: the acquisition function, a Gaussian process of training scores, the
linear generalization gap. Not kept: traffic and control tasks and their results.
"""

from collections.abc import Sequence

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.transfer.selection import gaussian_process


def mbtl_next(
    contexts: Float[np.ndarray, "n"],
    picked: Sequence[int],
    scores: Float[np.ndarray, "k n"],
    slope: float,
    beta: float | None = None,
) -> int:
    """The index of the context to train on next.

    The first is the middle one. Then the largest `mean_j [mu(i) + beta * sigma(i) -
    slope * |x_i - x_j| - best(j)]_+`: `mu` and `sigma` of a Gaussian process fitted to
    the score of each pick on its own context, `best(j)` the best score so far on j.

    `contexts` are values in any unit. Row r of `scores` has the scores on all contexts
    of the model of `picked[r]`. `slope` is the score that is lost by unit of distance,
    as from `fit_slope`; `beta` weighs uncertainty, by default `sqrt(log(k + 1))`.

    Example:
      >>> mbtl_next(np.arange(5.0), [], np.zeros((0, 5)), slope=0.1)
      2
    """
    x, picked = np.asarray(contexts, float), list(picked)
    if np.shape(scores) != (len(picked), len(x)) or len(set(picked)) == len(x):
        raise ValueError(
            f"mbtl_next: {len(picked)} of {len(x)} contexts, scores {np.shape(scores)}"
        )
    if not picked:
        return int(np.argsort(x, kind="stable")[len(x) // 2])
    unit = (x - x.min())[:, None] / (np.ptp(x) or 1.0)
    own = np.asarray(scores)[np.arange(len(picked)), picked]
    mean, deviation = gaussian_process.fit(unit[picked], own).predict(unit)
    beta = np.sqrt(np.log(len(picked) + 1)) if beta is None else beta
    reach = (mean + beta * deviation)[:, None] - slope * abs(x[:, None] - x)
    gain = np.clip(reach - np.max(scores, axis=0), 0, None).mean(axis=1)
    gain[picked] = -np.inf
    return int(np.argmax(gain))


def fit_slope(
    contexts: Float[np.ndarray, "n"],
    picked: Sequence[int],
    scores: Float[np.ndarray, "k n"],
) -> float:
    """Score lost by unit of distance: least squares through the origin, at least 0."""
    x, rows = np.asarray(contexts, float), np.arange(len(picked))
    far = abs(x[list(picked)][:, None] - x)
    drop = np.asarray(scores)[rows, list(picked)][:, None] - scores
    return max(0.0, float((far * drop).sum() / max((far**2).sum(), 1e-30)))


def coverage(transfer: Float[np.ndarray, "n n"], picked: Sequence[int]) -> float:
    """Mean over contexts of the best score among the models that were trained."""
    return float(np.asarray(transfer)[list(picked)].max(axis=0).mean())


def mbtl(
    contexts: Float[np.ndarray, "n"],
    transfer: Float[np.ndarray, "n n"],
    budget: int,
    slope: float | None = None,
) -> list[int]:
    """The picks of `mbtl_next` where row `i` of `transfer` is seen once i is picked.

    Without `slope` it is fitted to the rows seen so far.
    """
    picked: list[int] = []
    for _ in range(budget):
        seen = np.asarray(transfer)[picked]
        s = fit_slope(contexts, picked, seen) if slope is None and picked else slope
        picked.append(mbtl_next(contexts, picked, seen, s or 0.0))
    return picked


def equidistant(n: int, budget: int) -> list[int]:
    """Indices in the middle of `budget` equal parts: a strong baseline."""
    return [int((2 * i + 1) * n / (2 * budget)) for i in range(budget)]


def greedy_oracle(transfer: Float[np.ndarray, "n n"], budget: int) -> list[int]:
    """Each pick raises `coverage` most; it sees the whole of `transfer`."""
    picked: list[int] = []
    for _ in range(budget):
        rest = [i for i in range(len(transfer)) if i not in picked]
        picked.append(max(rest, key=lambda i: coverage(transfer, [*picked, i])))
    return picked
