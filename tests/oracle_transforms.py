"""Slow float64 definitions for the transformations, on flat vectors."""

import jax
import numpy as np
from scipy.optimize import nnls


def flat(tree):
    """All leaves behind each other, float64."""
    leaves = [np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def flat_rows(stack):
    """The same for each of the trees on the leading axis."""
    size = len(jax.tree.leaves(stack)[0])
    return np.stack(
        [flat(jax.tree.map(lambda x, i=i: x[i], stack)) for i in range(size)]
    )


def without_span(g, rows, weight):
    """`g` less its part in the span of `rows`, orthogonal under `sum a b weight`.

    By an orthonormal basis in the coordinates `sqrt(weight) * x`, not by normal
    equations.
    """
    root = np.sqrt(weight)
    _, values, basis = np.linalg.svd(rows * root, full_matrices=False)
    basis = basis[values > 1e-9 * values.max()]
    z = g * root
    return (z - basis.T @ (basis @ z)) / root


def nearest_feasible(step, rows, metric):
    """The point nearest to `step` under `metric` with `rows @ point <= 0`.

    By its dual, a non-negative least-squares problem: the multipliers approximate the
    step from the cone that the rows span.
    """
    root = np.sqrt(metric)
    multipliers, _ = nnls((rows / root).T, root * step)
    return step - rows.T @ multipliers / metric, multipliers


class AdamW:
    """Decoupled weight decay, arXiv 1711.05101, algorithm 2, without a schedule."""

    def __init__(self, size, rate, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
        self.m, self.v, self.t = np.zeros(size), np.zeros(size), 0
        self.rate, self.b1, self.b2, self.eps, self.decay = rate, b1, b2, eps, decay

    def step(self, g, params):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat = self.m / (1 - self.b1**self.t)
        direction = m_hat / self.denominator() + self.decay * params
        return -self.rate * direction

    def denominator(self):
        return np.sqrt(self.v / (1 - self.b2**self.t)) + self.eps


def dual_multipliers(values, *, tolerance, step_size, initial, warmup):
    """The multiplier that each step uses."""
    used, multiplier = [], initial
    for step, value in enumerate(values):
        used.append(multiplier)
        if step >= warmup:
            multiplier = max(0.0, multiplier + step_size * (value - tolerance))
    return used


def adaptive_weights(values, *, steps_per_epoch, lowest=1.2, highest=2.3):
    """The retain weight that each step uses, by the published rule."""
    used = []
    for step, value in enumerate(values):
        if step < steps_per_epoch:
            used.append(lowest)
            continue
        rise = value - np.mean(values[:steps_per_epoch])
        if rise <= 0:
            used.append(lowest)
        else:
            used.append(min(highest, max(lowest, round(0.3 * 6.0**rise + 0.8, 1))))
    return used


def kth_largest(scores, kept):
    return np.sort(flat(scores))[::-1][kept - 1]
