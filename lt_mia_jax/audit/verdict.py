"""The findings of an audit in sentences."""

from collections.abc import Iterator, Sequence

import numpy as np

from lt_mia_jax.attacks.controls import FEWEST, SHIFTED
from lt_mia_jax.attacks.estimate import Comparison, DatasetVerdict, Estimate
from lt_mia_jax.attacks.scores.table import LEARNED, describe
from lt_mia_jax.audit.records import (
    PERMUTATION,
    TEXT_ONLY,
    CombinationSummary,
    Judged,
)
from lt_mia_jax.audit.scoring import ScoredTexts

SWAPPED, INVERTED = 1e-3, 0.4
"""Texts that score lower than non-members with a p-value below the first, or have an
AUC below the second, make one ask whether the models were swapped."""
LEVEL = 0.05
"""Of single texts: p-values are counted, and false discoveries controlled, at it."""


def verdict(
    combinations: Sequence[CombinationSummary],
    primary: str,
    judged: Judged | None = None,
) -> tuple[str, ...]:
    """Sentences on the set as a whole, on single texts, and on each combination.

    Combinations that the attack never saw come first. `judged` compares the texts with
    known non-members, if there are any.
    """
    judged = Judged() if judged is None else judged
    labeled = [each for each in combinations if each.counts.members is not None]
    sentences: list[str] = []
    if judged.comparison is not None:
        sentences += _against_nonmembers(judged, judged.comparison)
    elif not labeled:
        texts = sum(each.counts.texts for each in combinations)
        sentences.append(
            f"{texts} texts were scored and ranked. Without labels and without "
            "--nonmembers no error rate can be stated, so this run accuses no text."
        )
    sentences += _together(labeled, primary)
    for each in sorted(labeled, key=lambda each: not each.unseen):
        sentences += _combination(each, primary)
    return tuple(sentences)


def ez_notes(scored: Sequence[ScoredTexts]) -> tuple[str, ...]:
    """A sentence on texts without evidence for EZ-MIA, when there are any."""
    found, texts = (sum(g.ez_edge for g in scored), sum(len(g.ids) for g in scored))
    if not found:
        return ()
    return (
        f"EZ-MIA gives 0, its lowest score, to {found} of {texts} texts: the target "
        "errs on fewer than two of their tokens, or is nowhere worse than the "
        "reference where it errs. Its authors' code does so.",
    )


def _against_nonmembers(judged: Judged, comparison: Comparison) -> Iterator[str]:
    """Set and single texts, or why nothing is said of them."""
    if comparison.decision == "different":
        yield (
            "No verdict: without any model a classifier tells the texts from the known "
            f"non-members with an AUC of {_interval(comparison.auc)} (above "
            f"{SHIFTED:g}; 0.5 is guessing). Scores may differ for that reason, so "
            f"neither p-values nor a verdict are given. {differs_most(comparison)}"
        )
    yield from _set(judged.dataset)
    if judged.p_values is not None and judged.q_values is not None:
        yield _single_texts(judged.p_values, judged.q_values)
    if comparison.decision == "doubtful":
        yield (
            "The texts may not be like the known non-members: without any model a "
            f"classifier tells them apart with an AUC of {_interval(comparison.auc)}. "
            f"P-values may be too small. {differs_most(comparison)}"
        )
    if comparison.decision == "untested":
        yield (
            f"There are too few texts to test whether they are like the known "
            f"non-members ({FEWEST} of each are needed). P-values hold only if they "
            "are: same source, period, kind and length."
        )
    different = comparison.decision == "different"  # which would explain it
    if not different and judged.lower is not None and judged.lower < SWAPPED:
        yield (
            "The texts score lower than the known non-members (Mann-Whitney p = "
            f"{judged.lower:.2g}), which training on them does not cause: are "
            "--reference and --target swapped?"
        )


def differs_most(comparison: Comparison) -> str:
    """In which statistic two sets of texts differ most, and what to do."""
    return (
        f"They differ most in {comparison.statistic} (median {comparison.suspects:.3g} "
        f"against {comparison.nonmembers:.3g}). Give non-members of the same source, "
        "period, kind and length as the texts."
    )


def _set(dataset: DatasetVerdict | None) -> Iterator[str]:
    if dataset is not None:
        opening = (
            "The set of texts as a whole shows fine-tuning membership"
            if dataset.decision == "member"
            else "There is no evidence that the set of texts was in the fine-tuning "
            "data"
        )
        yield (
            f"{opening} (dataset inference against {dataset.n_nonmembers} known "
            f"non-members: p = {dataset.p_value:.2g}, level {dataset.alpha:g})."
        )


def _single_texts(p_values: np.ndarray, q_values: np.ndarray) -> str:
    usable = int(np.sum(~np.isnan(p_values)))
    found = int(np.nansum(q_values <= LEVEL))
    low = int(np.nansum(p_values <= LEVEL))
    return (
        f"{low} of {usable} texts have a p-value of at most .05, where chance alone "
        f"gives about {LEVEL * usable:.0f}; {found} remain at a false-discovery rate "
        "of 5 % (Benjamini-Hochberg)."
    )


def _together(labeled: Sequence[CombinationSummary], primary: str) -> Iterator[str]:
    """One opening sentence over several labeled combinations."""
    found = [each.attacks[primary].auc for each in labeled if primary in each.attacks]
    values = [auc.value for auc in found if auc.value is not None]
    if len(values) > 1:
        fresh = all(each.unseen for each in labeled)
        where = "whose model and corpus it never saw" if fresh else "judged here"
        yield (
            f"Over the {len(values)} combinations {where}, {_title(primary)} has an "
            f"AUC between {min(values):.3f} and {max(values):.3f}, mean "
            f"{sum(values) / len(values):.3f}."
        )


def _combination(summary: CombinationSummary, primary: str) -> Iterator[str]:
    """Result, best other score and controls of one labeled combination."""
    counts, attacks = summary.counts, summary.attacks
    if not attacks:
        yield (
            f"{summary.name}: {counts.members} members and {counts.nonmembers} "
            "non-members are too few for a table; at least 2 of each are needed."
        )
        return
    yield (
        f"On {summary.name} ({counts.members} members, {counts.nonmembers} "
        f"non-members) {_title(primary)} has an AUC of "
        f"{_interval(attacks[primary].auc)}; the member/non-member loss gap is "
        f"{_interval(summary.loss_gap_nats)} nats."
    )
    area = attacks[primary].auc
    if (area.value or 0.5) < INVERTED and (area.high or 0) < 0.5:
        yield (
            "Members score lower than non-members, which training on them does not "
            "cause: are --reference and --target swapped, or the labels inverted?"
        )
    others = {
        name: found.auc.value
        for name, found in attacks.items()
        if name != primary and found.auc.value is not None
    }
    if others:
        best = max(others, key=lambda name: others[name])
        yield (
            f"The best other score, {_title(best)}, reaches "
            f"{_interval(attacks[best].auc)}."
        )
    if TEXT_ONLY in summary.controls:
        baseline = summary.controls[TEXT_ONLY].auc
        yield f"A text-only baseline reaches {_interval(baseline)}, {_reads(baseline)}."
    control = summary.controls[PERMUTATION].auc
    low, high = control.low, control.high
    inside = low is not None and high is not None and low <= 0.5 <= high
    yield (
        f"With permuted labels the AUC is {_interval(control)}"
        + (", as it must be." if inside else ", which should contain 0.5: suspicious.")
    )


def _reads(baseline: Estimate) -> str:
    if (baseline.value or 0) > SHIFTED:
        return (
            "above .6: members and non-members differ as texts, so read every figure "
            "against it"
        )
    if (baseline.low or 0) > 0.5:
        return "a little above chance: read the other figures against it"
    return "so the texts alone do not give membership away"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "not available"
    text = f"{estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return text


def _title(name: str) -> str:
    return "the learned attack" if name == LEARNED else describe(name).label
