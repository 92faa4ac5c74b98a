"""Slow float64 definitions of the training-free scores, one text at a time.

A text is a dict of plain lists over its scored steps.
"""

import math


def mean(values):
    return math.fsum(values) / len(values)


def text_of(stats, row):
    """The scored steps of one row as a dict of lists."""
    steps = [t for t, ok in enumerate(stats.valid[row]) if ok]
    names = [n for n in stats._fields if n not in ("input_ids", "valid", "columns")]
    return {
        name: [float(getattr(stats, name)[row][t]) for t in steps]
        for name in names
        if getattr(stats, name) is not None
    }


def loss(x):
    return mean(x["target_log_prob"])


def zlib(x, size):
    return mean(x["target_log_prob"]) / size


def lowercase(x, lower):
    nll, nll_lower = -mean(x["target_log_prob"]), -mean(lower["target_log_prob"])
    return -nll / nll_lower


def share(values, fraction, largest=False):
    count = max(1, int(fraction * len(values)))
    return mean(sorted(values, reverse=largest)[:count])


def min_k(x, fraction=0.2):
    return share(x["target_log_prob"], fraction)


def max_k(x, fraction=0.2):
    return share(x["target_log_prob"], fraction, largest=True)


def min_k_plus_plus(x, fraction=0.2):
    standardized = []
    for lp, mu, var in zip(
        x["target_log_prob"], x["target_mean"], x["target_var"], strict=True
    ):
        standardized.append((lp - mu) / math.sqrt(max(var, 1e-10)))
    return share(standardized, fraction)


def rank(x):
    return -mean(x["target_rank"])


def log_rank(x):
    return -mean([math.log(r) for r in x["target_rank"]])


def entropy(x):
    return -mean([-mu for mu in x["target_mean"]])


def lrr(x):
    return -math.fsum(x["target_log_prob"]) / max(
        math.fsum(math.log(r) for r in x["target_rank"]), 1e-8
    )


def reference(x):
    return mean(x["target_log_prob"]) - mean(x["reference_log_prob"])


def ratio(x):
    nll_t, nll_r = -mean(x["target_log_prob"]), -mean(x["reference_log_prob"])
    return -nll_t / max(nll_r, 1e-8)


def ez(x, edge="code"):
    zone = [t for t in range(1, len(x["target_log_prob"])) if not x["target_top1"][t]]
    gains = losses = 0.0
    for t in zone:
        d = x["target_log_prob"][t] - x["reference_log_prob"][t]
        if d > 0:
            gains += d
        else:
            losses += -d
    if edge == "code":
        if len(zone) < 2 or losses == 0:
            return 0.0
    elif not zone:
        return 3.4028234663852886e38
    return gains / (losses + 1e-12)


def wbc(x, windows, repeat_clamped=True):
    gains = [
        a - b
        for a, b in zip(x["target_log_prob"], x["reference_log_prob"], strict=True)
    ]
    sizes = [min(w, len(gains)) for w in windows]
    if not repeat_clamped:
        longer = [w for w in windows if w >= len(gains)]
        sizes = [w for w in windows if w < len(gains)]
        sizes += [len(gains)] if longer else []
    shares = []
    for w in sizes:
        starts = range(len(gains) - w + 1)
        wins = 0
        for start in starts:
            if math.fsum(gains[start : start + w]) > 0:
                wins += 1
        shares.append(wins / len(starts))
    return mean(shares)


def binoculars(x):
    return 1 - (-mean(x["target_log_prob"])) / (-mean(x["cross_mean"]))


def fast_detectgpt(x, sampling="target"):
    m, s2 = (
        ("target_mean", "target_var")
        if sampling == "target"
        else ("cross_mean", "cross_var")
    )
    return (math.fsum(x["target_log_prob"]) - math.fsum(x[m])) / math.sqrt(
        math.fsum(x[s2])
    )
