"""A Gaussian process on few points: what `mbtl` and `autotune` search with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from lt_mia_jax.arrays import Float

LENGTHS = (1.6, 0.8, 0.4, 0.2, 0.1, 0.05)  # inputs are in [0, 1]; ties: the first
NOISE = 0.1  # variance, for scores of variance 1


class GaussianProcess(NamedTuple):
    """A posterior with a squared-exponential kernel, on standardized scores."""

    x: Float[np.ndarray, "k d"]
    length: float
    factor: Float[np.ndarray, "k k"]
    """Lower Cholesky factor of kernel + noise."""
    weights: Float[np.ndarray, "k"]
    shift: float
    scale: float
    evidence: float
    """Log marginal likelihood of the standardized scores."""

    def predict(
        self, x: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Mean and standard deviation of the function (without noise) at points."""
        cross = _kernel(x, self.x, self.length)
        rest = solve_triangular(self.factor, cross.T, lower=True)
        deviation = np.sqrt(np.clip(1 - (rest**2).sum(axis=0), 0, None))
        mean = self.shift + self.scale * (cross @ self.weights)
        return mean, self.scale * deviation


def fit(
    x: Float[np.ndarray, "k d"],
    y: Float[np.ndarray, "k"],
    *,
    lengths: Sequence[float] = LENGTHS,
    noise: float = NOISE,
) -> GaussianProcess:
    """The process of largest marginal likelihood among `lengths`."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    shift, scale = float(y.mean()), float(y.std()) or 1.0
    z = (y - shift) / scale

    def of_length(length: float) -> GaussianProcess:
        factor = cholesky(_kernel(x, x, length) + noise * np.eye(len(x)), lower=True)
        weights = cho_solve((factor, True), z)
        evidence = -0.5 * z @ weights - np.log(np.diag(factor)).sum()
        evidence -= 0.5 * len(x) * np.log(2 * np.pi)
        return GaussianProcess(
            x, length, factor, weights, shift, scale, float(evidence)
        )

    return max(map(of_length, lengths), key=lambda process: process.evidence)


def _kernel(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], length: float
) -> Float[np.ndarray, "n m"]:
    squared = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    return np.exp(-0.5 * squared / length**2)
