"""Slow float64 definitions of the unlearning objectives, text by text, token by token.

Each takes the logits (or streams) and returns one `(term, count)` a text; the value is
`sum(weight * term) / sum(count where weight)`. Where a definition stops the gradient it
reads `frozen` instead of the logits, so that differences see it as a constant.
"""

import numpy as np


def predictions(batch, weight=None):
    """For each text the (position, following target) that are scored."""
    weight = batch.weight if weight is None else weight
    return [
        [
            (t, int(batch.input_ids[b, t + 1]))
            for t in range(batch.input_ids.shape[1] - 1)
            if batch.label_mask[b, t + 1] and weight[b] != 0
        ]
        for b in range(len(batch.input_ids))
    ]


def softmax(row):
    e = np.exp(np.float64(row) - np.max(row))
    return e / e.sum()


def log_softmax(row):
    shifted = np.float64(row) - np.max(row)
    return shifted - np.log(np.exp(shifted).sum())


def log_sigmoid(x):
    return -np.log1p(np.exp(-x)) if x > 0 else x - np.log1p(np.exp(x))


def value(terms, weight):
    total = sum(float(w) * term for w, (term, _) in zip(weight, terms, strict=True))
    norm = sum(count for w, (_, count) in zip(weight, terms, strict=True) if w)
    return total / norm if norm else 0.0


def losses(logits, batch, weight=None):
    """Of each text the list of -log p."""
    return [
        [-log_softmax(logits[b, t])[y] for t, y in row]
        for b, row in enumerate(predictions(batch, weight))
    ]


def reference_losses(batch, weight=None):
    return [
        [float(batch.reference_nll[b, t]) for t, _ in row]
        for b, row in enumerate(predictions(batch, weight))
    ]


def nll(logits, batch, *, reduction="token", sign=1.0, weight=None):
    found = []
    for row in losses(logits, batch, weight):
        total, n = sign * sum(row), len(row)
        if reduction == "token":
            found.append((total, n))
        elif reduction == "sequence_sum":
            found.append((total, min(n, 1)))
        else:
            found.append((total / n if n else 0.0, min(n, 1)))
    return found


def npo(logits, batch, *, beta):
    return [
        (-2 / beta * log_sigmoid(beta * (sum(row) - sum(ref))), 1) if row else (0.0, 0)
        for row, ref in zip(losses(logits, batch), reference_losses(batch), strict=True)
    ]


def simnpo(logits, batch, *, beta, delta):
    return [
        (-2 / beta * log_sigmoid(beta * (np.mean(row) - delta)), 1) if row else (0.0, 0)
        for row in losses(logits, batch)
    ]


def dpo(logits, other_logits, batch, *, beta):
    other, found = batch.alternative, []
    lost, lost_ref = losses(logits, batch), reference_losses(batch)
    won = losses(other_logits, other, batch.weight)
    won_ref = reference_losses(other, batch.weight)
    for b in range(len(lost)):
        if not lost[b] or not won[b]:
            found.append((0.0, 0))
            continue
        gain = sum(won_ref[b]) - sum(won[b]) - (sum(lost_ref[b]) - sum(lost[b]))
        found.append((-2 / beta * log_sigmoid(beta * gain), 1))
    return found


def reweighted(logits, frozen, batch, weight_of):
    """-sum of weight_of(p, p_ref) * nll."""
    found = []
    for b, row in enumerate(predictions(batch)):
        total = 0.0
        for t, y in row:
            p = softmax(frozen[b, t])[y]
            p_ref = np.exp(-float(batch.reference_nll[b, t]))
            total += weight_of(p, p_ref) * log_softmax(logits[b, t])[y]
        found.append((total, len(row)))
    return found


def wga(logits, frozen, batch, *, beta):
    return reweighted(logits, frozen, batch, lambda p, _: p**beta)


def tnpo(logits, frozen, batch, *, beta):
    return reweighted(
        logits, frozen, batch, lambda p, r: 2 * p**beta / (p**beta + r**beta + 1e-5)
    )


def wtnpo(logits, frozen, batch, *, beta, alpha):
    return reweighted(
        logits,
        frozen,
        batch,
        lambda p, r: 2 * p ** (beta + alpha) / (p**beta + r**beta + 1e-5),
    )


def satimp(logits, frozen, batch, *, beta1, beta2):
    return reweighted(logits, frozen, batch, lambda p, _: p**beta1 * (1 - p) ** beta2)


def over_tokens(logits, batch, term, skip=0):
    """Sum of term(b, t, y, row of logits) over all but the first `skip` targets."""
    return [
        (sum(term(b, t, y, logits[b, t]) for t, y in row[skip:]), len(row[skip:]))
        for b, row in enumerate(predictions(batch))
    ]


def undial(logits, reference, batch, *, beta):
    def term(b, t, y, row):
        lowered = np.array(reference[b, t], np.float64)
        lowered[y] -= beta
        return -(softmax(lowered) * log_softmax(row)).sum()

    return over_tokens(logits, batch, term)


def kl(logits, reference, batch):
    def term(b, t, y, row):
        p = softmax(reference[b, t])
        return (p * (np.log(p) - log_softmax(row))).sum()

    return over_tokens(logits, batch, term)


def ce_u(logits, frozen, batch, *, skip):
    def term(b, t, y, row):
        p = softmax(frozen[b, t])
        q = np.delete(p, y) / np.delete(p, y).sum()
        return -(q * np.delete(log_softmax(row), y)).sum()

    return over_tokens(logits, batch, term, skip)


def pdu(logits, batch):
    def term(b, t, y, row):
        return (np.max(row) - np.mean(np.float64(row))) ** 2

    return over_tokens(logits, batch, term)


def stream_distance(stream, batch, aim_of):
    """Sum over the target tokens, at their own positions, of the mean square."""
    found = []
    for b in range(len(stream)):
        at = [
            t
            for t in range(stream.shape[1])
            if batch.label_mask[b, t] and batch.weight[b] != 0
        ]
        squares = [((np.float64(stream[b, t]) - aim_of(b, t)) ** 2).mean() for t in at]
        found.append((sum(squares), len(at)))
    return found


def gradient(function, point, step=1e-5):
    """Central differences of a scalar function of an array."""
    point = np.array(point, np.float64)
    found = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        ends = []
        for sign in (1, -1):
            moved = point.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        found[index] = (ends[0] - ends[1]) / (2 * step)
    return found
