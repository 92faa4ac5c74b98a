"""Means over combinations, with intervals that know which texts they share.

One corpus is judged with several bases and draws, so its texts come again and again: a
resample draws texts once for all combinations of a corpus, and draws repetitions within
each pair of base and corpus. Differences are taken within resamples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.attacks.metrics import refuses

LEVEL = (0.025, 0.975)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of one combination's texts; all arrays `[N]`."""

    name: str
    base: str
    corpus: str
    draw: int
    ids: np.ndarray
    labels: Int[np.ndarray, " N"]
    scores: Mapping[str, Float[np.ndarray, " N"]]
    """By attack, higher = more likely a member; NaN = no score."""


class Mean(NamedTuple):
    """A mean over combinations and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Curve(NamedTuple):
    """What a group says of an attack, and in each of R resamples."""

    value: float
    resampled: Float[np.ndarray, " R"]

    @property
    def mean(self) -> Mean:
        """With its interval."""
        if not len(self.resampled) or np.isnan(self.value):
            return Mean(self.value, np.nan, np.nan)
        low, high = np.quantile(self.resampled, LEVEL)
        return Mean(self.value, float(low), float(high))

    def less(self, other: "Curve") -> Mean:
        """This one minus another of the same resamples."""
        return Curve(self.value - other.value, self.resampled - other.resampled).mean

    def over(self, other: "Curve") -> Mean:
        """This one divided by another of the same resamples."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.resampled / other.resampled
        return Curve(self.value / other.value, np.nan_to_num(ratios, nan=1.0)).mean


class Resamples:
    """How often each text counts in each resample, and which repetitions do."""

    def __init__(self, judged: Sequence[Judged], *, count: int, seed: int) -> None:
        """Draw for all corpora and cells of the given combinations."""
        self.count = count
        rng = np.random.default_rng(seed)
        self._weights: dict[str, tuple[dict[str, int], np.ndarray]] = {}
        for corpus in sorted({j.corpus for j in judged}):
            ids = sorted({i for j in judged if j.corpus == corpus for i in j.ids})
            drawn = rng.multinomial(
                len(ids), np.full(len(ids), 1 / len(ids)), size=count
            )
            self._weights[corpus] = (
                {text: k for k, text in enumerate(ids)},
                drawn.astype(np.float32),
            )
        self._draws: dict[tuple[str, str], tuple[list[int], np.ndarray]] = {}
        for cell in sorted({(j.base, j.corpus) for j in judged}):
            draws = sorted({j.draw for j in judged if (j.base, j.corpus) == cell})
            picked = rng.integers(len(draws), size=(count, len(draws)))
            times = np.stack([(picked == k).sum(1) for k in range(len(draws))], axis=1)
            self._draws[cell] = (draws, times / len(draws))

    def weights(self, judged: Judged) -> Float[np.ndarray, "R N"]:
        """Of the texts of a combination."""
        numbers, drawn = self._weights[judged.corpus]
        return drawn[:, [numbers[i] for i in judged.ids]]

    def share(self, judged: Judged) -> Float[np.ndarray, " R"]:
        """Of a repetition within its cell; adds up to 1 over repetitions."""
        draws, share = self._draws[judged.base, judged.corpus]
        return share[:, draws.index(judged.draw)]


def weighted_roc(
    labels: Int[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, "R N"],
    rate: float,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """AUC and conservative TPR at a false-positive rate, in each resample.

    Ties count one half in the AUC, and a threshold never divides them.
    """
    keep = ~np.isnan(scores)
    order = np.flatnonzero(keep)[np.argsort(-scores[keep], kind="stable")]
    sorted_scores = scores[order]
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)
    drawn = weights[:, order].astype(np.float64)
    member = labels[order] == 1
    zero = np.zeros((len(weights), 1))
    tp = np.hstack([zero, np.cumsum(drawn * member, axis=1)[:, last]])
    fp = np.hstack([zero, np.cumsum(drawn * ~member, axis=1)[:, last]])
    members, nonmembers = tp[:, -1], fp[:, -1]
    area = (np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1])).sum(axis=1) / 2
    allowed = (fp <= rate * nonmembers[:, None] + 1e-9).sum(axis=1) - 1
    found = tp[np.arange(len(tp)), allowed]
    with np.errstate(invalid="ignore", divide="ignore"):
        return area / (members * nonmembers), found / members


def group(
    judged: Sequence[Judged], attack: str, resamples: Resamples, *, rate: float
) -> tuple[Curve, Curve]:
    """Mean AUC and mean TPR at `rate` over the cells of some combinations."""
    cells = {(j.base, j.corpus) for j in judged}
    repeats = {cell: sum((j.base, j.corpus) == cell for j in judged) for cell in cells}
    values, drawn = np.zeros(2), np.zeros((2, resamples.count))
    for one in judged:
        truth = one.labels, one.scores[attack]
        point = weighted_roc(*truth, np.ones((1, len(one.labels))), rate)
        share = 1 / repeats[one.base, one.corpus] / len(cells)
        values += share * np.concatenate(point)
        found = np.stack(weighted_roc(*truth, resamples.weights(one), rate))
        drawn += resamples.share(one) * found / len(cells)
    return Curve(values[0], drawn[0]), Curve(values[1], drawn[1])


def pooled_tpr(
    judged: Sequence[Judged], attack: str, resamples: Resamples, *, rate: float
) -> Curve | None:
    """TPR at `rate` with all texts of some combinations under one threshold.

    None when there are too few non-members for that rate.
    """
    labels = np.concatenate([j.labels for j in judged])
    if refuses(rate, int((labels == 0).sum())):
        return None
    scores = np.concatenate([j.scores[attack] for j in judged])
    weights = np.hstack(
        [resamples.weights(j) * resamples.share(j)[:, None] for j in judged]
    )
    _, value = weighted_roc(labels, scores, np.ones((1, len(labels))), rate)
    _, drawn = weighted_roc(labels, scores, weights, rate)
    return Curve(float(value[0]), drawn)


def loss_gap(judged: Judged) -> float:
    """Mean loss of non-members minus that of members, in nats a token."""
    loss = -judged.scores["loss"]
    return float(
        np.nanmean(loss[judged.labels == 0]) - np.nanmean(loss[judged.labels == 1])
    )
