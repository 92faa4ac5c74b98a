"""The order in which a model learned stays visible after unlearning.

Two models that learned the same texts in different orders differ, and unlearning that
sees only the gradients of the forget set drives them apart. For linear models this is
exact: a test of any pipeline that claims to equal retraining.

Source: On the Impossibility of Retrain Equivalence in Machine Unlearning, arXiv
2510.16629.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float


class AscentBound(NamedTuple):
    """How far apart gradient ascent drives two linear models at the least."""

    start: float
    """Steps from which the bound holds."""
    scale: float
    """`sigma^2 |P d|^2 / (4 m)`, with P onto the rows that are ascended on."""
    growth: float
    """Factor of the difference in one step."""

    def at(self, steps: int) -> float:
        """Least mean squared difference of the predictions after so many steps."""
        return self.scale * self.growth ** (2 * steps)


def retrain_distance(predictions: Any, retrained: Any) -> Any:
    """Squared distance of two models' predictions "... d"; NumPy or JAX arrays."""
    return ((predictions - retrained) ** 2).sum(axis=-1)


def ascent_difference(
    difference: Float[np.ndarray, " p"],
    inputs: Float[np.ndarray, "k p"],
    step_size: float,
    steps: int,
) -> Float[np.ndarray, " p"]:
    """Difference of two linear models after gradient ascent on the same texts.

    `(I + s M)^t d` with `M = (2 / k) X^T X`: ascent on the mean squared error, whatever
    the targets are. `difference` is that of the weights before.
    """
    values, basis = np.linalg.eigh(2 / len(inputs) * inputs.T @ inputs)
    return basis @ ((1 + step_size * values) ** steps * (basis.T @ difference))


def ascent_bound(
    difference: Float[np.ndarray, " p"],
    inputs: Float[np.ndarray, "k p"],
    judged: Float[np.ndarray, "m p"],
    step_size: float,
) -> AscentBound:
    """Least distance of the predictions of two linear models under gradient ascent.

    From `start` on, the part of the difference that ascent enlarges outweighs twice the
    part that it never touches.

    Args:
      difference: of the weights before; not orthogonal to all inputs.
      inputs: rows that are ascended on.
      judged: rows whose predictions are compared.
      step_size: of plain gradient ascent.
    """
    _, size, rows = np.linalg.svd(inputs, full_matrices=False)
    rows = rows[size > size[0] * len(difference) * np.finfo(np.float64).eps]
    inside = rows.T @ (rows @ difference)
    curvature = 2 / len(inputs) * inputs.T @ inputs
    norm = float(np.linalg.norm(inside))
    growth = 1 + step_size * float(inside @ curvature @ inside) / norm**2
    seen = np.linalg.svd(judged @ rows.T, compute_uv=False)
    sigma = float(seen[seen > seen[0] * 1e-12].min())
    still = float(np.linalg.norm(judged @ (difference - inside)))
    start = math.log(max(2 * still / (sigma * norm), 1.0)) / math.log(growth)
    return AscentBound(start, (sigma * norm) ** 2 / (4 * len(judged)), growth)
