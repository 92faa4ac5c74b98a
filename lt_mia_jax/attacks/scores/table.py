"""The table of published scores, which commands, cards, pages and docs read.

A new score is one function (in `formulas`, say) and one row here.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Num
from numpy import ndarray

from lt_mia_jax.arrays import Array
from lt_mia_jax.attacks.scores import formulas
from lt_mia_jax.features.statistics import TokenStatistics

LEARNED = "lt_mia"
"""Name of the learned attack's score in every file."""

Need = Literal["reference", "zlib_bytes", "lower_loss", "fraction"]


class Description(NamedTuple):
    """How tables and pages show a score."""

    label: str
    meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """One published score."""

    name: str
    """In every file."""
    label: str
    function: Callable[..., Any]
    """Token statistics and `needs` (but for the reference) in, one value a text out."""
    meaning: str
    """What it measures, in a few words."""
    source: str
    needs: tuple[Need, ...] = ()
    """What is needed beside the target's statistics; without it the score is left out.
    `fraction` is the share of tokens that the score averages, 20 % by default."""

    def described(self, fraction: float | None = None) -> Description:
        """Label and meaning, with the fraction where the score has one."""
        if "fraction" not in self.needs:
            return Description(self.label, self.meaning)
        percent = f"{100 * (fraction or FRACTION):g} %"
        return Description(f"{self.label} {percent}", self.meaning.format(percent))


FRACTION = 0.2
"""Share of tokens that Min-K%, Max-K% and Min-K%++ average in audits."""
CARD_FRACTION = 0.4
"""The same on cards of unlearned models, as MUSE and open-unlearning have it."""

SCORES = (
    Score("loss", "Loss", formulas.loss, "mean log-likelihood", "Yeom et al. 2018"),
    Score(
        "min_k",
        "Min-K%",
        formulas.min_k,
        "mean log-likelihood of the least likely {} of tokens",
        "arXiv 2310.16789",
        ("fraction",),
    ),
    Score(
        "max_k",
        "Max-K%",
        formulas.max_k,
        "mean log-likelihood of the most likely {} of tokens",
        "Tab-MIA",
        ("fraction",),
    ),
    Score(
        "min_k_plus_plus",
        "Min-K%++",
        formulas.min_k_plus_plus,
        "mean of the lowest {} of standardized log-likelihoods",
        "arXiv 2404.02936",
        ("fraction",),
    ),
    Score(
        "rank",
        "Rank",
        formulas.rank,
        "mean rank of the true token, negated",
        "GLTR, arXiv 1906.04043",
    ),
    Score(
        "log_rank",
        "Log-rank",
        formulas.log_rank,
        "mean logarithm of the rank, negated",
        "DetectGPT, arXiv 2301.11305",
    ),
    Score(
        "entropy",
        "Entropy",
        formulas.entropy,
        "mean entropy of the prediction, negated",
        "GLTR, arXiv 1906.04043",
    ),
    Score(
        "lrr",
        "LRR",
        formulas.lrr,
        "log-likelihood over log-rank",
        "DetectLLM, arXiv 2306.05540",
    ),
    Score(
        "fast_detectgpt",
        "Fast-DetectGPT",
        formulas.fast_detectgpt,
        "standardized log-likelihood",
        "arXiv 2310.05130",
    ),
    Score(
        "reference",
        "Reference",
        formulas.reference,
        "log-likelihood minus that of the reference model",
        "Carlini et al. 2021",
        ("reference",),
    ),
    Score(
        "ratio",
        "Ratio",
        formulas.ratio,
        "loss over the loss of the reference model, negated",
        "arXiv 2601.02751 (baselines)",
        ("reference",),
    ),
    Score(
        "ez",
        "EZ-MIA",
        formulas.ez,
        "gains over losses where the target errs",
        "arXiv 2601.12104",
        ("reference",),
    ),
    Score(
        "wbc",
        "WBC",
        formulas.wbc,
        "share of windows in which the target beats the reference",
        "arXiv 2601.02751",
        ("reference",),
    ),
    Score(
        "binoculars",
        "Binoculars",
        formulas.binoculars,
        "loss over cross-entropy between the models",
        "arXiv 2401.12070",
        ("reference",),
    ),
    Score(
        "zlib",
        "Zlib",
        formulas.zlib,
        "log-likelihood per compressed byte",
        "Carlini et al. 2021",
        ("zlib_bytes",),
    ),
    Score(
        "lowercase",
        "Lowercase",
        formulas.lowercase,
        "loss over the loss of the lower-cased text",
        "Carlini et al. 2021",
        ("lower_loss",),
    ),
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
) -> dict[str, formulas.Scores]:
    """Every score of the table that the given inputs allow, by name.

    Args:
      stats: statistics of the texts; without a reference the comparing scores are left
        out.
      zlib_bytes: bytes of each text compressed by zlib, for `zlib`.
      lower: statistics of the lower-cased texts, for `lowercase`.
      lower_loss: their mean losses in nats, in place of `lower`.
      fraction: share of tokens that Min-K%, Max-K% and Min-K%++ average.
      only: names of the scores wanted; None takes all.
    """
    if lower is not None:
        lower_loss = -formulas.loss(lower)
    given: dict[Need, Any] = {
        "reference": stats.reference_log_prob,
        "zlib_bytes": zlib_bytes,
        "lower_loss": lower_loss,
        "fraction": fraction,
    }
    return {
        row.name: row.function(
            stats, **{need: given[need] for need in row.needs if need != "reference"}
        )
        for row in SCORES
        if (only is None or row.name in only)
        and all(given[need] is not None for need in row.needs)
    }


def describe(name: str, fraction: float | None = None) -> Description:
    """Label and meaning of a score; an unknown one shows under its name.

    Args:
      name: as in files.
      fraction: share of tokens that Min-K% and its kin averaged; None as in audits.
    """
    if name == LEARNED:
        return Description("LT-MIA", "learned classifier over per-token statistics")
    found = next((row for row in SCORES if row.name == name), None)
    return Description(name) if found is None else found.described(fraction)
