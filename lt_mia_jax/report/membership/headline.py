"""The headline numbers of an audit."""

from collections.abc import Iterator, Sequence

import numpy as np

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.audit.records import TEXT_ONLY
from lt_mia_jax.report.membership.run import Run
from lt_mia_jax.report.panels import Tile
from lt_mia_jax.report.wording import (
    DECISIONS,
    NBSP,
    attack_name,
    bounds,
    count,
    p_text,
    percent,
    percentage,
    unit,
)


def headline(run: Run) -> Iterator[Tile]:
    """One tile a number, the verdict first; what was not measured has none."""
    summary = run.summary
    dataset = summary.dataset
    if dataset is not None:
        yield Tile(
            "Dataset verdict",
            DECISIONS[dataset.decision],
            f"p = {p_text(dataset.p_value)} against \N{GREEK SMALL LETTER ALPHA} = "
            f"{dataset.alpha:g}; {count(dataset.n_suspect)} suspect texts, "
            f"{count(dataset.n_nonmembers)} non-members",
        )
    comparison = summary.comparison
    if comparison is not None and comparison.decision == "different":
        yield Tile(
            "Dataset verdict", "none", "texts and known non-members differ as texts"
        )
    every = summary.combinations
    results = [
        c.attacks[summary.primary] for c in every if summary.primary in c.attacks
    ]
    label = attack_name(summary.primary).label
    yield from _tile(f"AUC of {label}", [found.auc for found in results])
    rates = {rate for found in results for rate in found.tpr}
    for rate in sorted(rates, key=float):
        tprs = [found.tpr[rate] for found in results if rate in found.tpr]
        values = [tpr.conservative for tpr in tprs if not tpr.refused]
        if [v.value is not None for v in values] == [True] * len(results):
            yield from _tile(f"TPR at {percent(float(rate))} FPR", values, rate=True)
            break
    baselines = [c.controls[TEXT_ONLY].auc for c in every if TEXT_ONLY in c.controls]
    yield from _tile("AUC of the text-only baseline", baselines)
    if comparison is not None:
        yield from _tile(
            "AUC of texts against non-members, text-only", [comparison.auc]
        )
    yield from _tile("Loss gap, nats per token", [c.loss_gap_nats for c in every])
    calibration = summary.calibration
    if calibration and calibration.p_values:
        values = np.asarray(calibration.p_values)
        yield Tile(
            "Texts with p \N{LESS-THAN OR EQUAL TO} 0.05",
            percentage(float((values <= 0.05).mean())),
            f"of {count(len(values))}; chance gives 5{NBSP}%",
        )
    yield _size(run)


def _tile(
    label: str, found: Sequence[Estimate | None], *, rate: bool = False
) -> Iterator[Tile]:
    """A number with its interval, or the mean and range over combinations."""
    shown = percentage if rate else unit
    known = [each for each in found if each and each.value is not None]
    values = [each.value for each in known if each.value is not None]
    if len(known) == 1:
        ends = bounds(known[0], rate=rate)
        detail = f"95{NBSP}% interval {ends}" if ends else ""
        yield Tile(label, shown(known[0].value), detail)
    elif values:
        yield Tile(
            label,
            shown(sum(values) / len(values)),
            f"mean of {len(values)} combinations, from {shown(min(values))} to "
            f"{shown(max(values))}",
        )


def _size(run: Run) -> Tile:
    counts = [each.counts for each in run.summary.combinations]
    total = count(sum(each.texts for each in counts))
    if any(None in (each.members, each.nonmembers) for each in counts):
        return Tile("Texts", total, "membership unknown")
    members, others = (
        count(sum(getattr(each, name) for each in counts))
        for name in ("members", "nonmembers")
    )
    return Tile("Texts", total, f"{members} members, {others} non-members")
