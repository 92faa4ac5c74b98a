"""Means over combinations, with intervals that know which texts they share.

One corpus is judged with several bases and draws, so its texts come again and again: a
resample draws texts once for all combinations of a corpus, and draws repetitions within
each pair of base and corpus. Differences are taken within resamples.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

from lt_mia_jax.attacks.controls import permuted_labels
from lt_mia_jax.attacks.metrics import refuses
from lt_mia_jax.data.texts import hash_unit

LEVEL = (0.025, 0.975)
_CELLS = 2**21  # resamples x texts at a time: 16 MiB an array


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
    permuted: Float[np.ndarray, " K"] = dataclasses.field(
        default_factory=lambda: np.empty(0)
    )
    """AUC of the text-only control against permuted labels that it has learned."""


def permuted_labels_of(
    name: str, labels: Int[np.ndarray, " N"], number: int
) -> Int[np.ndarray, " N"]:
    """Labels of a combination in its own `number`-th random order.

    An order common to all combinations would pick the same rows everywhere; as members
    come first, it would pick as many of them, and means would keep what is chance.
    """
    word = int(hash_unit("permuted", name, number) * 2**53)
    return permuted_labels(labels, word)


class Mean(NamedTuple):
    """A mean over combinations and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (f"{x:.3f}" if math.isfinite(x) else "-" for x in self)
        return f"{value} [{low}, {high}]"

    @property
    def json(self) -> dict[str, float | None]:
        """The numbers, None for what is not one."""
        named = self._asdict().items()
        return {name: x if math.isfinite(x) else None for name, x in named}


class Curve(NamedTuple):
    """What a group says of an attack, and in each of R resamples."""

    value: float
    resampled: Float[np.ndarray, " R"]

    @property
    def mean(self) -> Mean:
        """With its interval."""
        if not len(self.resampled) or np.isnan(self.value):
            return Mean(self.value, np.nan, np.nan)
        # Infinite or missing resamples lie above all others.
        ranked = np.sort(np.nan_to_num(self.resampled, nan=np.inf))
        low, high = np.quantile(ranked, LEVEL, method="nearest")
        return Mean(self.value, float(low), float(high))

    def less(self, other: "Curve") -> Mean:
        """This one minus another of the same resamples."""
        return Curve(self.value - other.value, self.resampled - other.resampled).mean

    def over(self, other: "Curve") -> Mean:
        """This one divided by another of the same resamples."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.resampled / other.resampled
            return Curve(self.value / other.value, ratios).mean


class Resamples:
    """How often each text counts in each resample, and each repetition."""

    def __init__(self, judged: Sequence[Judged], *, count: int, seed: int) -> None:
        """Draw texts of all corpora of the given combinations."""
        self.count, self.seed = count, seed
        rng = np.random.default_rng(seed)
        self._weights: dict[str, tuple[dict[str, int], np.ndarray]] = {}
        for corpus in sorted({j.corpus for j in judged}):
            ids = sorted({i for j in judged if j.corpus == corpus for i in j.ids})
            even = np.full(len(ids), 1 / len(ids))
            drawn = rng.multinomial(len(ids), even, size=count).astype(np.float32)
            self._weights[corpus] = {id: k for k, id in enumerate(ids)}, drawn

    def weights(self, judged: Judged) -> Float[np.ndarray, "R N"]:
        """Of the texts of a combination."""
        numbers, drawn = self._weights[judged.corpus]
        return drawn[:, [numbers[i] for i in judged.ids]]

    def shares(self, judged: Sequence[Judged]) -> Float[np.ndarray, "R J"]:
        """Of each combination in a mean over cells; a resample adds up to 1.

        Within a cell (base and corpus) repetitions are drawn with replacement.
        """
        cells: dict[tuple[str, str], list[int]] = {}
        for k, one in enumerate(judged):
            cells.setdefault((one.base, one.corpus), []).append(k)
        found = np.zeros((self.count, len(judged)))
        for cell, rows in cells.items():
            # Of each cell's own: two families' repetitions have nothing in common.
            word = int(hash_unit("repetitions", *cell) * 2**53)
            rng = np.random.default_rng([self.seed, word])
            even = np.full(len(rows), 1 / len(rows))
            drawn = rng.multinomial(len(rows), even, size=self.count)
            found[:, rows] = drawn / len(rows) / len(cells)
        return found


def weighted_roc(
    labels: Int[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, "R N"],
    rate: float,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """AUC and conservative TPR at a false-positive rate, in each resample.

    Ties count one half in the AUC, and a threshold never divides them.
    """
    if weights.size > _CELLS and len(weights) > 1:
        blocks = np.array_split(weights, min(len(weights), -(-weights.size // _CELLS)))
        parts = [weighted_roc(labels, scores, block, rate) for block in blocks]
        return np.concatenate([p[0] for p in parts]), np.concatenate(
            [p[1] for p in parts]
        )
    keep = ~np.isnan(scores)
    if not keep.any():  # a score that exists for none of the texts
        none = np.full(len(weights), np.nan)
        return none, none
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
    judged: Sequence[Judged],
    attacks: Sequence[str],
    resamples: Resamples,
    *,
    rate: float,
) -> dict[str, tuple[Curve, Curve]]:
    """Mean AUC and mean TPR at `rate` over the cells of some combinations, by attack.

    A cell is a base and a corpus; its repetitions count alike.
    """
    cells = [(j.base, j.corpus) for j in judged]
    shares = resamples.shares(judged)
    values = {name: np.zeros(2) for name in attacks}
    drawn = {name: np.zeros((2, resamples.count)) for name in attacks}
    for k, one in enumerate(judged):
        share = 1 / cells.count(cells[k]) / len(set(cells))
        weights = resamples.weights(one)
        plain = np.ones((1, len(one.labels)))
        for name in attacks:
            scores = one.scores[name]
            point = weighted_roc(one.labels, scores, plain, rate)
            values[name] += share * np.concatenate(point)
            found = np.stack(weighted_roc(one.labels, scores, weights, rate))
            drawn[name] += shares[:, k] * found
    return {
        name: (
            Curve(float(values[name][0]), drawn[name][0]),
            Curve(float(values[name][1]), drawn[name][1]),
        )
        for name in attacks
    }


def pooled_tpr(
    judged: Sequence[Judged],
    attacks: Sequence[str],
    resamples: Resamples,
    *,
    rate: float,
) -> dict[str, Curve]:
    """TPR at `rate` with all texts of some combinations under one threshold, by attack.

    Empty when there are too few non-members for that rate.
    """
    labels = np.concatenate([j.labels for j in judged])
    if refuses(rate, int((labels == 0).sum())):
        return {}
    shares = resamples.shares(judged)
    weights = np.hstack(
        [resamples.weights(j) * shares[:, k : k + 1] for k, j in enumerate(judged)]
    )
    found = {}
    for name in attacks:
        scores = np.concatenate([j.scores[name] for j in judged])
        _, value = weighted_roc(labels, scores, np.ones((1, len(labels))), rate)
        _, drawn = weighted_roc(labels, scores, weights, rate)
        found[name] = Curve(float(value[0]), drawn)
    return found


def loss_gap(judged: Judged) -> float:
    """Mean loss of non-members minus that of members, in nats a token."""
    loss = -judged.scores["loss"]
    return float(
        np.nanmean(loss[judged.labels == 0]) - np.nanmean(loss[judged.labels == 1])
    )


def at_equal_gap(
    aucs: Float[np.ndarray, "J R"],
    gaps: Float[np.ndarray, " J"],
    families: Sequence[str],
    corpora: Sequence[str],
    gap: float,
) -> dict[str, Float[np.ndarray, " R"]]:
    """AUC that each family would have at one loss gap, mean corpus.

    Least squares of the probit of the AUC (the distance of two equally wide normal
    distributions of scores) in the gap, with a constant of each family and corpus.
    """
    kinds, texts = sorted(set(families)), sorted(set(corpora))
    family = np.array([[f == kind for kind in kinds] for f in families], float)
    corpus = np.array([[c == text for text in texts] for c in corpora], float)
    # Corpora add up to zero: constants of families are those of the mean corpus.
    corpus = corpus[:, 1:] - corpus[:, :1]
    design = np.column_stack([family, corpus, gaps - gap])
    probits = ndtri(np.clip(aucs, 1e-4, 1 - 1e-4))
    fitted, *_ = np.linalg.lstsq(design, probits, rcond=None)
    return {kind: ndtr(fitted[i]) for i, kind in enumerate(kinds)}
