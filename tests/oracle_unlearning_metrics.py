"""Slow metrics of unlearning, from their definitions."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np


def answer_oracle(logits, ids, label_mask):
    """Per item a list of (nll, match, rank) over its supervised targets, in order."""
    items = []
    for z, text, marks in zip(np.float64(logits), ids, label_mask, strict=True):
        steps = []
        for t in range(len(text) - 1):
            if not marks[t + 1]:
                continue
            row, true = z[t], text[t + 1]
            nll = np.log(np.exp(row - row.max()).sum()) + row.max() - row[true]
            best = min(v for v in range(len(row)) if row[v] == row.max())
            steps.append((nll, best == true, 1 + sum(row > row[true])))
        items.append(steps)
    return items


def strength_oracle(matches):
    """Try every prefix, the empty one first."""
    for k in range(len(matches) + 1):
        if all(matches[k:]):
            return 1 - k / len(matches)
    raise AssertionError


def lcs_oracle(a, b):
    """Length of the longest common subsequence, by trying all of them."""
    for size in range(min(len(a), len(b)), 0, -1):
        for kept in combinations(a, size):
            rest = iter(b)
            if all(word in rest for word in kept):
                return size
    return 0


def ks_exact(n, h):
    """P of D = h / n for two samples of n, in rational numbers."""
    whole = math.comb(2 * n, n)
    return 2 * sum(
        (-1) ** (j - 1) * Fraction(math.comb(2 * n, n - j * h), whole)
        for j in range(1, n // h + 1)
    )


def ks_log_gamma(n, h):
    """The same in floats, from log-gamma."""

    def log_binomial(k):
        return math.lgamma(2 * n + 1) - math.lgamma(k + 1) - math.lgamma(2 * n - k + 1)

    return 2 * math.fsum(
        (-1) ** (j - 1) * math.exp(log_binomial(n - j * h) - log_binomial(n))
        for j in range(1, n // h + 1)
    )


def ks_by_orders(n, m, distance):
    """P of D >= distance by going through every order of n + m values."""
    reached = total = 0
    for places in combinations(range(n + m), n):
        first, largest = 0, Fraction(0)
        for i in range(n + m):
            first += i in places
            largest = max(largest, abs(Fraction(first, n) - Fraction(i + 1 - first, m)))
        reached += largest >= distance
        total += 1
    return Fraction(reached, total)


def ks_by_paths(n, m, distance):
    """The same by counting, in whole numbers, the orders that stay below D."""
    below, limit = [0] * (m + 1), distance * n * m
    for x in range(n + 1):
        for y in range(m + 1):
            paths = 1 if x == y == 0 else below[y] + (below[y - 1] if y else 0)
            below[y] = paths if abs(x * m - y * n) < limit else 0
    return 1 - Fraction(below[m], math.comb(n + m, n))


def distance_oracle(a, b):
    """Largest difference of the two distribution functions."""
    a, b = np.sort(a), np.sort(b)
    return max(
        abs(
            Fraction(int(np.searchsorted(a, x, "right")), len(a))
            - Fraction(int(np.searchsorted(b, x, "right")), len(b))
        )
        for x in [*a, *b]
    )


def completeness_oracle(unlearned, original, shadows, steps, pooled):
    """IAM score, one item and one step at a time."""

    def r(p):
        return -math.log(1e-2 - math.log(1e-5 + p))

    score = []
    for i in range(len(unlearned)):
        total = weight = 0.0
        for t in range(steps - 1):
            a, following = t / (steps - 1), (t + 1) / (steps - 1)
            moved = [
                [r(s[j]) + a * (r(original[j]) - r(s[j])) for j in range(len(s))]
                for s in shadows
            ]
            own = [row[i] for row in moved]
            mean = sum(own) / len(own)
            deviation = np.std(moved) if pooled else np.std(own)
            b = math.sqrt(6) * deviation / math.pi
            mu = mean - 0.5772 * b
            z = (r(unlearned[i]) - mu) / b
            total += following * (math.exp(-math.exp(-z)) if z > -700 else 0.0)
            weight += following
        score.append(1 - total / weight)
    return np.array(score)


def quantize_oracle(weight, bits, group):
    """One channel of one layer at a time; weight is (layers, inputs, outputs)."""
    out, codes = np.empty_like(weight), np.empty(weight.shape, np.int64)
    levels = np.float32(2 ** (bits - 1) - 1)
    for layer in range(weight.shape[0]):
        for channel in range(weight.shape[2]):
            for start in range(0, weight.shape[1], group or weight.shape[1]):
                stop = start + (group or weight.shape[1])
                w = weight[layer, start:stop, channel]
                scale = np.abs(w).max() / levels
                q = np.clip(np.round(w / (scale or np.float32(1))), -levels, levels)
                codes[layer, start:stop, channel] = q
                out[layer, start:stop, channel] = q * scale
    return out, codes
