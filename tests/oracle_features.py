"""Slow float64 definitions of the per-token statistics and of the LT-MIA features."""

import numpy as np


def log_softmax(row):
    row = np.asarray(row, np.float64)
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def rank(row, value):
    """One plus the number of strictly greater entries."""
    greater = 0
    for entry in row:
        if entry > value:
            greater += 1
    return 1 + greater


def largest(row, k):
    """Indices of the k largest entries, lowest index first among equals."""
    return sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]


def smallest(row, k):
    return sorted(range(len(row)), key=lambda v: (row[v], v))[:k]


def moments(weights_row, values_row):
    """Mean and variance of `values` under the softmax of `weights`."""
    p = np.exp(log_softmax(weights_row))
    values = log_softmax(values_row)
    mean = 0.0
    for weight, value in zip(p, values, strict=True):
        mean += weight * value
    variance = 0.0
    for weight, value in zip(p, values, strict=True):
        variance += weight * (value - mean) ** 2
    return mean, variance


def token_statistics(target, reference, ids, attention):
    """Dict of (B, T) arrays; zero where no token is predicted."""
    batch, length, _ = target.shape
    names = (
        "target_log_prob reference_log_prob target_mean target_var reference_mean "
        "cross_mean cross_var target_rank reference_rank target_top1 valid"
    ).split()
    out = {name: np.zeros((batch, length)) for name in names}
    for b in range(batch):
        for t in range(length - 1):
            if not attention[b, t + 1]:
                continue
            a, r, y = target[b, t], reference[b, t], ids[b, t + 1]
            out["valid"][b, t] = 1
            out["target_log_prob"][b, t] = log_softmax(a)[y]
            out["reference_log_prob"][b, t] = log_softmax(r)[y]
            out["target_mean"][b, t], out["target_var"][b, t] = moments(a, a)
            out["reference_mean"][b, t], _ = moments(r, r)
            out["cross_mean"][b, t], out["cross_var"][b, t] = moments(r, a)
            out["target_rank"][b, t] = rank(a, a[y])
            out["reference_rank"][b, t] = rank(r, r[y])
            out["target_top1"][b, t] = largest(a, 1)[0] == y
    return out


def pair(a, b):
    m = max(a, b)
    return [a - m, b - m]


def lt_mia_features(target, reference, ids, attention, k):
    """Features (B, T, 7k + 14) and mask (B, T), one step at a time."""
    target = np.asarray(target, np.float64)
    reference = np.asarray(reference, np.float64)
    batch, length, vocabulary = target.shape
    features = np.zeros((batch, length, 7 * k + 14))
    mask = np.zeros((batch, length), bool)

    def nr(r):
        return np.log1p(r) / np.log(vocabulary + 1)

    for b in range(batch):
        losses = []
        for t in range(length - 1):
            if not attention[b, t + 1]:
                continue
            mask[b, t] = True
            a, r, y = target[b, t], reference[b, t], ids[b, t + 1]
            row = [*pair(a[y], r[y]), nr(rank(a, a[y])), nr(rank(r, r[y]))]
            for i, j in zip(largest(a, k), largest(r, k), strict=True):
                row += [*pair(a[i], r[i]), nr(rank(r, r[i])), nr(rank(a, a[j]))]
            for s in smallest(a, k):
                row += [*pair(a[s], r[s]), nr(rank(r, r[s]))]
            ce_t, ce_r = -log_softmax(a)[y], -log_softmax(r)[y]
            losses.append((ce_t, ce_r, ce_t - ce_r))
            row += [ce_t, ce_r, ce_t - ce_r]
            features[b, t, : 7 * k + 7] = row
        if losses:
            table = np.array(losses)
            mean = table.mean(0)
            std = np.sqrt(table.var(0) + 1e-6)
            seven = [mean[0], std[0], mean[1], std[1], mean[2], std[2]]
            seven.append(table[:, 2].sum())
            features[b, mask[b], 7 * k + 7 :] = seven
    return features, mask
