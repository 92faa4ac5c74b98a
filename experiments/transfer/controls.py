"""Section of the controls: what must give AUC 0.5, and how far chance alone goes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from experiments.transfer.attacks import REFERENCE
from experiments.transfer.statistics import (
    LEVEL,
    Judged,
    Mean,
    Resamples,
    group,
    permuted_labels_of,
)
from experiments.transfer.tables import LEARNED, RATE, TEXT_ONLY, Found, point, table

JOINT = 0.95
"""Of studies without a leak, how many hold 0.5 in all intervals together."""


def section(found: Found) -> str:
    """Each control: where its intervals hold 0.5, one by one and all together."""
    epochs = {c.name: c.epochs for c in found.plan.judge}
    untouched = [j for j in found.judged if epochs[j.name] == 0]
    shuffled = [
        dataclasses.replace(j, labels=permuted_labels_of(j.name, j.labels, 0))
        for j in found.main
    ]
    rows = text_only(found.main)
    for label, part, name in (
        ("attack that sees only the reference's columns", found.main, REFERENCE),
        ("target = reference, LT-MIA", untouched, LEARNED),
        ("permuted labels, LT-MIA", shuffled, LEARNED),
    ):
        if part and name in part[0].scores:
            rows.append([label, *resampled(part, name, found.resamples)])
    times = len(found.main[0].permuted)
    return "\n\n".join(
        [
            "### Controls",
            "AUC must be 0.5. Combinations whose interval holds it: each interval for "
            "itself at 95 %, of which one in twenty is expected not to; and intervals "
            "so wide that without a leak all hold it in 95 % of studies (Šidák). The "
            "forest learns from the texts that it judges, by cross-validation, and "
            "scatters more than other scores: its intervals are those of its own AUC "
            f"where it has learned permuted labels instead, {times} times for each "
            "combination.",
            table(
                ["control", "hold 0.5, each", "hold 0.5, together", "AUC", "mean"], rows
            ),
        ]
    )


def chance(judged: Judged) -> float:
    """Standard deviation of the AUC of a score that has nothing to do with labels.

    Source: Mann and Whitney (1947), without ties.
    """
    members = int((judged.labels == 1).sum())
    others = len(judged.labels) - members
    return math.sqrt((members + others + 1) / (12 * members * others))


def text_only(part: Sequence[Judged]) -> list[list[str]]:
    """Rows of the text-only control, with true and with permuted labels.

    Intervals are quantiles of what it reached with permuted labels, in units of
    `chance`, of all combinations; those of the mean are of its standard deviation.
    """
    units = np.array([chance(j) for j in part])
    values = np.array([point(j, TEXT_ONLY)[0] for j in part])
    permuted = np.stack([j.permuted for j in part])
    null = ((permuted - 0.5) / units[:, None]).ravel()
    if not np.isfinite(null).all() or not null.size:
        return [["only the text (bag of tokens, forest)", *["too few texts"] * 4]]
    z = (values - 0.5) / units
    held = []
    for level in (LEVEL[1] - LEVEL[0], JOINT ** (1 / len(part))):
        low, high = np.quantile(null, [(1 - level) / 2, (1 + level) / 2])
        held.append(int(((low <= z) & (z <= high)).sum()))
    half = ndtri(LEVEL[1]) * permuted.std() / math.sqrt(len(part))
    mean = values.mean()
    return [
        [
            "only the text (bag of tokens, forest)",
            *(f"{count} of {len(part)}" for count in held),
            _range(values),
            str(Mean(mean, mean - half, mean + half)),
        ],
        [
            f"the same with permuted labels, spread {null.std():.2f} times a score's",
            *["by definition"] * 2,
            _range(permuted),
            f"{permuted.mean():.3f}",
        ],
    ]


def resampled(part: Sequence[Judged], name: str, resamples: Resamples) -> list[str]:
    """Cells of another control, by the usual intervals over texts."""
    values, each, together = [], 0, 0
    wide = ndtri((1 + JOINT ** (1 / len(part))) / 2)
    for one in part:
        auc, _ = group([one], [name], resamples, rate=RATE)[name]
        each += auc.mean.low <= 0.5 <= auc.mean.high
        # So far out that quantiles of few resamples would not tell.
        together += abs(auc.value - 0.5) <= wide * float(np.std(auc.resampled))
        values.append(auc.value)
    mean = group(part, [name], resamples, rate=RATE)[name][0].mean
    return [
        f"{each} of {len(part)}",
        f"{together} of {len(part)}",
        _range(np.array(values)),
        str(mean),
    ]


def _range(values: Float[np.ndarray, "..."]) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"
