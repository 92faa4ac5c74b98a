"""How well a score separates members from non-members, with intervals and counts.

Scores are logits or any real number; higher = more likely a member. NaN means that a
text could not be scored: it is left out and counted, never read as "non-member".
Intervals are 95 % percentile bootstraps over texts, members and non-members resampled
separately.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from sklearn.metrics import roc_auc_score, roc_curve

from lt_mia_jax.attacks.estimate import AttackSummary, Estimate, TprEstimate
from lt_mia_jax.errors import InputError

RATES = (0.05, 0.01, 0.001)
"""False-positive rates of every table."""

FEWEST_FALSE_POSITIVES = 10
"""A TPR at rate f is refused when f x non-members is below this."""

_BLOCK_CELLS = 2**21  # resamples x distinct scores held at a time: 16 MiB an array

Labels = Integer[np.ndarray, " N"] | Bool[np.ndarray, " N"] | Float[np.ndarray, " N"]
Scores = Float[np.ndarray, " N"]


class Roc(NamedTuple):
    """Points of the ROC curve from (0, 0) to (1, 1), thresholds falling."""

    fpr: Float[np.ndarray, " P"]
    tpr: Float[np.ndarray, " P"]
    thresholds: Float[np.ndarray, " P"]


class TprAtFpr(NamedTuple):
    """The numbers of a `TprEstimate`."""

    conservative: float
    interpolated: float
    refused: bool


def auc(labels: Labels, scores: Scores) -> float:
    """Probability that a member scores above a non-member, ties counting one half.

    NaN scores are left out. NaN when one of the classes is empty.
    """
    truth, values = _usable(labels, scores)
    if truth.min(initial=1) == truth.max(initial=0) or truth.size == 0:
        return math.nan
    return float(roc_auc_score(truth, _finite_order(values)))


def roc(labels: Labels, scores: Scores) -> Roc:
    """The ROC curve without intermediate collinear points.

    Raises:
      InputError: one of the classes has no score.
    """
    truth, values = _both_classes(labels, scores)
    return Roc(*roc_curve(truth, _finite_order(values)))


def tpr_at_fpr(labels: Labels, scores: Scores, f: float) -> TprAtFpr:
    """True-positive rate at false-positive rate `f`.

    Raises:
      InputError: one of the classes has no score.

    Source: the interpolated form is the one of the LT-MIA evaluation (arXiv
    2604.03199): index i = searchsorted(fpr, f, side=right) on the ROC, linear between
    the points i - 1 and i, the last TPR past the end.
    """
    truth, values = _both_classes(labels, scores)
    # Every threshold, since the conservative reading may stop at a collinear one;
    # dropping those leaves the lines between points as they are.
    fpr, tpr, _ = roc_curve(truth, _finite_order(values), drop_intermediate=False)
    i = int(np.searchsorted(fpr, f, side="right"))
    conservative = interpolated = float(tpr[i - 1])
    if i < len(fpr):
        slope = (tpr[i] - tpr[i - 1]) / (fpr[i] - fpr[i - 1])
        interpolated += float(slope * (f - fpr[i - 1]))
    refused = refuses(f, int((truth == 0).sum()))
    return TprAtFpr(conservative, interpolated, refused)


def refuses(f: float, nonmembers: int) -> bool:
    """Whether a TPR at rate `f` is refused for so few non-members."""
    return f * nonmembers < FEWEST_FALSE_POSITIVES - 1e-9


def summarize(
    labels: Labels, scores: Scores, *, seed: int = 0, n_boot: int = 1000
) -> AttackSummary:
    """AUC and TPR at 5, 1 and 0.1 % with 95 % intervals and counts.

    The same seed resamples the same texts for every attack, so that intervals of
    attacks on the same texts are comparable. Without resamples (`n_boot` 0) there are
    no intervals. Where a rate is refused or a class is empty, there is no value.
    """
    truth, values = _usable(labels, scores)
    members, nonmembers = int(truth.sum()), int(truth.size - truth.sum())
    rates = [f for f in RATES if not refuses(f, nonmembers)]
    area = none = Estimate(None)
    table = {
        f: TprEstimate(conservative=none, interpolated=none, refused=f not in rates)
        for f in RATES
    }
    if members and nonmembers:
        boot = _Resampled(truth, values, rates, seed=seed, n_boot=n_boot)
        area = _estimate(auc(truth, values), boot.auc)
        for i, f in enumerate(rates):
            point = tpr_at_fpr(truth, values, f)
            table[f] = TprEstimate(
                conservative=_estimate(point.conservative, boot.conservative[i]),
                interpolated=_estimate(point.interpolated, boot.interpolated[i]),
                refused=False,
            )
    return AttackSummary(
        auc=area,
        tpr={f"{f:g}": row for f, row in table.items()},
        n_members=members,
        n_nonmembers=nonmembers,
        n_missing=int(np.size(scores) - truth.size),
    )


def loss_gap(
    labels: Labels, mean_loss: Scores, *, seed: int = 0, n_boot: int = 1000
) -> Estimate | None:
    """Mean loss of non-members minus that of members, in nats per token.

    How far the target overfits its members; the strength of any attack follows it.
    None when a class has no text with a `mean_loss` (nats a token, NaN without one).
    """
    truth, values = _usable(labels, mean_loss)
    inside, outside = values[truth == 1], values[truth == 0]
    if len(inside) == 0 or len(outside) == 0:
        return None
    rng = np.random.default_rng(seed)
    gaps = [
        rng.choice(outside, len(outside)).mean()
        - rng.choice(inside, len(inside)).mean()
        for _ in range(n_boot)
    ]
    return _estimate(float(outside.mean() - inside.mean()), np.array(gaps))


def _estimate(value: float, resampled: Float[np.ndarray, " R"]) -> Estimate:
    if not math.isfinite(value):
        return Estimate(None)
    if len(resampled) == 0:
        return Estimate(value)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _usable(labels: Labels, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 and scores as float64 of the texts that have a score."""
    truth = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise InputError(
            f"labels have shape {truth.shape}, scores {values.shape}; one of each a "
            "text is needed"
        )
    strange = np.unique(truth[(truth != 0) & (truth != 1)])
    if strange.size:
        raise InputError(
            f"labels must be 1 (member) or 0 (non-member); found {strange[:5].tolist()}"
        )
    keep = ~np.isnan(values)
    return truth[keep].astype(np.int64), values[keep]


def _both_classes(labels: Labels, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    truth, values = _usable(labels, scores)
    members = int(truth.sum())
    if not 0 < members < truth.size:
        raise InputError(
            f"found {members} scored members and {truth.size - members} scored "
            "non-members; a ROC curve needs at least one of each"
        )
    return truth, values


def _finite_order(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The same order without infinities, which scikit-learn refuses."""
    if np.isfinite(values).all():
        return values
    return np.unique(values, return_inverse=True)[1].astype(np.float64)


class _Resampled:
    """Bootstrap values of every figure at once, from histograms over score levels.

    A resample is the number of draws of each distinct score in each class; the ROC
    curve of a resample is then two cumulative sums. Work is linear in texts x
    resamples and no score is sorted twice.
    """

    def __init__(
        self,
        truth: np.ndarray,
        values: np.ndarray,
        rates: list[float],
        *,
        seed: int,
        n_boot: int,
    ) -> None:
        # Level 0 is the highest score, so thresholds fall along the axis.
        levels = np.unique(-values, return_inverse=True)[1]
        self.members = levels[truth == 1]
        self.nonmembers = levels[truth == 0]
        self.levels = int(levels.max()) + 1
        areas: list[np.ndarray] = [np.zeros(0)]
        points: list[np.ndarray] = [np.zeros((2, len(rates), 0))]
        for tp, fp in self._curves(seed, n_boot):
            # Trapezia: a tied level contributes half of its pairs.
            width, height = np.diff(fp, axis=1), tp[:, 1:] + tp[:, :-1]
            areas.append((width * height).sum(axis=1) / 2)
            if rates:
                points.append(np.stack([self._read(tp, fp, f) for f in rates], axis=1))
        pairs = len(self.members) * len(self.nonmembers)
        self.auc = np.concatenate(areas) / pairs
        both = np.concatenate(points, axis=2) / len(self.members)
        self.conservative, self.interpolated = both

    def _curves(
        self, seed: int, n_boot: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cumulative (members, non-members) per resample, a leading zero included."""
        rng = np.random.default_rng(seed)
        block = max(1, _BLOCK_CELLS // max(self.levels, len(self.members), 1))
        for start in range(0, n_boot, block):
            rows = min(block, n_boot - start)
            yield (
                self._cumulative(rng, self.members, rows),
                self._cumulative(rng, self.nonmembers, rows),
            )

    def _cumulative(
        self, rng: np.random.Generator, levels: np.ndarray, rows: int
    ) -> np.ndarray:
        drawn = levels[rng.integers(len(levels), size=(rows, len(levels)))]
        drawn += (np.arange(rows) * self.levels)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * self.levels)
        curve = np.zeros((rows, self.levels + 1))
        np.cumsum(counts.reshape(rows, self.levels), axis=1, out=curve[:, 1:])
        return curve

    def _read(self, tp: np.ndarray, fp: np.ndarray, f: float) -> np.ndarray:
        allowed = f * len(self.nonmembers)
        row = np.arange(len(tp))
        # The last threshold within the rate; the tolerance absorbs 0.01 * 300 > 3.
        last = (fp <= allowed + 1e-9).sum(axis=1) - 1
        following = np.minimum(last + 1, self.levels)
        run = fp[row, following] - fp[row, last]
        rise = tp[row, following] - tp[row, last]
        share = (allowed - fp[row, last]) / np.where(run > 0, run, 1)
        before = tp[row, last]
        return np.stack([before, before + np.where(run > 0, rise * share, 0)])
