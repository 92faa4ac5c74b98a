"""Metrics of success matrices: forward transfer, forgetting, area, recovery.

`matrix[k, i]` is the score on task `i` after learning task `k` (K x K, higher is
better); `curves[k, m]` the score on task `k` at checkpoint `m` while it is learned,
the untrained one included. Functions take NumPy or JAX arrays and return arrays of the
same kind and dtype; they work under `jit`.

Sources: LIBERO, arXiv 2306.03310 (`fwt`, `nbt`, `auc`); "Gradient Episodic Memory",
arXiv 1706.08840 (`bwt`); "Riemannian Walk", arXiv 1801.10112 (`intransigence`). Kept:
the formulas. Not kept: robots, simulators, policies.
"""

from typing import Any

Matrix = Any  # all three: arrays of NumPy or JAX
Vector = Any
Scalar = Any


def hold_best(curves: Matrix) -> Matrix:
    """Curves (K, M) that stay at their first best checkpoint, the one that is kept."""
    xp = curves.__array_namespace__()
    after = xp.arange(curves.shape[1])[None] > xp.argmax(curves, axis=1)[:, None]
    return xp.where(after, xp.max(curves, axis=1)[:, None], curves)


def fwt(curves: Matrix) -> Vector:
    """Forward transfer of each task (K,): the mean of its curve under `hold_best`."""
    return hold_best(curves).mean(axis=1)


def nbt(matrix: Matrix) -> Vector:
    """Negative backward transfer of each task but the last (K - 1,).

    The mean over later `j` of `matrix[k, k] - matrix[j, k]`; negative where they help.

    Example:
      >>> import numpy as np
      >>> nbt(np.array([[0.75, 0.0], [0.25, 1.0]])).tolist()
      [0.5]
    """
    xp, tasks = _square("nbt", matrix, least=2)
    later = xp.tril(matrix, -1).sum(axis=0)[:-1] / xp.arange(tasks - 1, 0, -1)
    return xp.diagonal(matrix)[:-1] - later


def auc(matrix: Matrix, curves: Matrix) -> Vector:
    """Area of each task (K,): `(fwt[k] + sum_{j > k} matrix[j, k]) / (K - k)`."""
    xp, tasks = _square("auc", matrix)
    return (fwt(curves) + xp.tril(matrix, -1).sum(axis=0)) / xp.arange(tasks, 0, -1)


def final_mean(matrix: Matrix) -> Scalar:
    """Mean score over tasks after the last one."""
    return matrix[-1].mean()


def mean_average_accuracy(matrix: Matrix) -> Scalar:
    """Mean over `k` of the mean score on tasks 0 to `k` after task `k`."""
    xp, tasks = _square("mean_average_accuracy", matrix)
    return (xp.tril(matrix).sum(axis=1) / xp.arange(1, tasks + 1)).mean()


def bwt(matrix: Matrix) -> Scalar:
    """Backward transfer: mean of `matrix[K - 1, i] - matrix[i, i]` over `i < K - 1`."""
    xp, _ = _square("bwt", matrix, least=2)
    return (matrix[-1] - xp.diagonal(matrix))[:-1].mean()


def intransigence(matrix: Matrix, joint: Vector) -> Vector:
    """`joint[k] - matrix[k, k]` (K,); joint training sees tasks 0 to `k` at once."""
    xp, _ = _square("intransigence", matrix)
    return joint - xp.diagonal(matrix)


def recovery_steps(
    steps: Vector, scores: Vector, original: Scalar, share: float = 0.95
) -> Scalar:
    """Updates until a forgotten task is back; inf if it never is.

    The first of `steps` (M,), in increasing order, whose score is at least `share` of
    the `original` one, `matrix[k, k]`.

    Source: experience replay of pretrained vision-language-action models. Kept: this
    measure and replay at small shares. Not kept: robots and their policies.
    """
    xp = scores.__array_namespace__()
    reached = scores >= share * original
    return xp.where(reached.any(), steps[xp.argmax(reached)], xp.inf)


def data_to_match(fractions: Vector, scores: Vector, target: Scalar) -> Scalar:
    """The smallest share of the data whose score reaches the target; inf if none does.

    Between two `fractions` (M,), in increasing order, the score is the line from the
    best one so far to the first that reaches the target.

    Example:
      >>> import numpy as np
      >>> float(data_to_match(np.array([0.1, 0.3]), np.array([0.2, 0.6]), 0.5))
      0.25

    Source: "Instruction Tuned Models are Quick Learners", arXiv 2306.05539: this alone.
    """
    xp = scores.__array_namespace__()
    reached = scores >= target
    first = xp.argmax(reached)
    before = xp.arange(scores.shape[0]) < first
    low = xp.max(xp.where(before, scores, xp.min(scores) - 1))
    left, right = fractions[xp.maximum(first - 1, 0)], fractions[first]
    part = (target - low) / xp.where(reached.any(), scores[first] - low, 1)
    return xp.where(reached.any(), left + part * (right - left), xp.inf)


def _square(who: str, matrix: Matrix, least: int = 1) -> tuple[Any, int]:
    """The array library and the number of tasks."""
    tasks = len(matrix)
    if matrix.shape != (tasks, tasks) or tasks < least:
        raise ValueError(f"{who}: {matrix.shape}, expected K x K with K >= {least}")
    return matrix.__array_namespace__(), tasks
