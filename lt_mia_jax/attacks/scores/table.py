"""The table of published scores, which commands, cards, pages and docs read.

A new score is one function (in `formulas`, say) and one row here.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Num
from numpy import ndarray

from lt_mia_jax.arrays import Array
from lt_mia_jax.attacks.scores.formulas import (
    Scores,
    binoculars,
    entropy,
    ez,
    fast_detectgpt,
    log_rank,
    loss,
    lowercase,
    lrr,
    max_k,
    min_k,
    min_k_plus_plus,
    rank,
    ratio,
    reference,
    wbc,
    zlib,
)
from lt_mia_jax.features.statistics import TokenStatistics

LEARNED = "lt_mia"
"""Name of the learned attack's score in every file."""

Need = Literal["reference", "moments", "zlib_bytes", "lower_loss", "fraction"]
_OF_STATISTICS: tuple[Need, ...] = ("reference", "moments")
"""What is part of the statistics, and no argument of its own."""


class Description(NamedTuple):
    """How tables and pages show a score."""

    label: str
    meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """One published score."""

    function: Callable[..., Any]
    """Token statistics and `needs` (but for what is part of them) in, one value a text
    out. It gives the score its name, and the end of its docstring the source."""
    label: str
    meaning: str
    """What it measures, in a few words."""
    needs: tuple[Need, ...] = ()
    """What is needed beside log-probabilities and ranks of the true tokens under the
    target; without it the score is left out. `moments` are means and variances over
    the vocabulary, `fraction` is the share of tokens that the score averages."""

    @property
    def name(self) -> str:
        """In every file."""
        return self.function.__name__

    @property
    def source(self) -> str:
        """Where it was published."""
        _, _, source = (self.function.__doc__ or "").partition("Source: ")
        return " ".join(source.split()).removesuffix(".")

    def described(self, fraction: float) -> Description:
        """Label and meaning, with the fraction where the score has one."""
        if "fraction" not in self.needs:
            return Description(self.label, self.meaning)
        percent = f"{100 * fraction:g} %"
        return Description(f"{self.label} {percent}", self.meaning.format(percent))


FRACTION = 0.2
"""Share of tokens that Min-K%, Max-K% and Min-K%++ average in audits."""
CARD_FRACTION = 0.4
"""The same on cards of unlearned models, as MUSE and open-unlearning have it."""

_PAIR: tuple[Need, ...] = ("reference",)
_MOMENTS: tuple[Need, ...] = ("moments",)
_SHARE: tuple[Need, ...] = ("fraction",)
SCORES = (
    Score(loss, "Loss", "mean log-likelihood"),
    Score(min_k, "Min-K%", "mean over the least likely {} of tokens", _SHARE),
    Score(max_k, "Max-K%", "mean over the most likely {} of tokens", _SHARE),
    Score(
        min_k_plus_plus,
        "Min-K%++",
        "mean of the lowest {} of z-scores",
        (*_MOMENTS, *_SHARE),
    ),
    Score(rank, "Rank", "mean rank of the true token, negated"),
    Score(log_rank, "Log-rank", "mean logarithm of the rank, negated"),
    Score(entropy, "Entropy", "mean entropy of the prediction, negated", _MOMENTS),
    Score(lrr, "LRR", "log-likelihood over log-rank"),
    Score(fast_detectgpt, "Fast-DetectGPT", "standardized log-likelihood", _MOMENTS),
    Score(reference, "Reference", "log-likelihood minus that of the reference", _PAIR),
    Score(ratio, "Ratio", "loss over the loss of the reference, negated", _PAIR),
    Score(ez, "EZ-MIA", "gains over losses where the target errs", _PAIR),
    Score(wbc, "WBC", "share of windows where the target beats the reference", _PAIR),
    Score(
        binoculars,
        "Binoculars",
        "loss over cross-entropy between models",
        (*_PAIR, *_MOMENTS),
    ),
    Score(zlib, "Zlib", "log-likelihood per compressed byte", ("zlib_bytes",)),
    Score(lowercase, "Lowercase", "loss over that in lower case", ("lower_loss",)),
)
"""Every published score, in the order of files."""


def all_scores(
    stats: TokenStatistics,
    *,
    zlib_bytes: Num[Array | ndarray, " B"] | None = None,
    lower: TokenStatistics | None = None,
    lower_loss: Float[Array | ndarray, " B"] | None = None,
    fraction: float = FRACTION,
    only: Collection[str] | None = None,
) -> dict[str, Scores]:
    """Every score of the table that the given inputs allow, by name.

    Without a reference, comparing scores are left out; without moments (`target_mean`
    is None), those of whole distributions; `zlib` without `zlib_bytes`, and `lowercase`
    without statistics of the lower-cased texts or their mean losses in nats. `fraction`
    is the share of tokens that Min-K% and its kin average; `only` names the scores
    wanted.
    """
    if lower is not None:
        lower_loss = -loss(lower)
    given: dict[Need, Any] = {
        "reference": stats.reference_log_prob,
        "moments": stats.target_mean,
        "zlib_bytes": zlib_bytes,
        "lower_loss": lower_loss,
        "fraction": fraction,
    }
    return {
        row.name: row.function(
            stats,
            **{need: given[need] for need in row.needs if need not in _OF_STATISTICS},
        )
        for row in SCORES
        if (only is None or row.name in only)
        and all(given[need] is not None for need in row.needs)
    }


def describe(name: str, fraction: float = FRACTION) -> Description:
    """Label and meaning of a score; an unknown one shows under its name."""
    if name == LEARNED:
        return Description("LT-MIA", "learned classifier over per-token statistics")
    found = next((row for row in SCORES if row.name == name), None)
    return Description(name) if found is None else found.described(fraction)
