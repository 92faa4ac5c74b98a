"""Combinations of a run turned into table rows and figures."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.report.drawing import plots
from lt_mia_jax.report.drawing.curves import roc_band
from lt_mia_jax.report.membership.checks import auc_of
from lt_mia_jax.report.membership.data import UNKNOWN, Run
from lt_mia_jax.report.schema import Number
from lt_mia_jax.report.wording import CONTROLS, attack_name

BASELINES = 3
"""Curves beside the learned attack in a ROC figure."""
EMPTY = {"value": None, "low": None, "high": None}


class AttackRow(NamedTuple):
    """One attack of one combination; `kind` is learned, baseline or control."""

    label: str
    definition: str
    kind: str
    primary: bool
    auc: Mapping[str, Any]
    glyph: Markup
    tpr: Mapping[str, Mapping[str, Any]]
    members: int
    nonmembers: int
    missing: int


class Curve(NamedTuple):
    """A legend entry of a ROC figure."""

    label: str
    css: str
    auc: Number | None


class CombinationView(NamedTuple):
    """One model and corpus under audit."""

    anchor: str
    facts: Mapping[str, Any]
    rates: list[str]
    attacks: list[AttackRow]
    controls: list[AttackRow]
    roc: Markup | None
    curves: list[Curve]
    scores: Markup | None
    scores_beyond: int
    losses: Markup | None
    losses_beyond: int


class OverviewRow(NamedTuple):
    """One line of the table that compares combinations."""

    anchor: str
    facts: Mapping[str, Any]
    auc: Mapping[str, Any]
    auc_glyph: Markup
    best: tuple[str, Number] | None
    blind: Number | None
    gap: Mapping[str, Any] | None
    gap_glyph: Markup


def view_combination(run: Run, place: int, anchor: str) -> CombinationView:
    """The view of the combination at `place` in the summary."""
    facts = run.summary["combinations"][place]
    rates = sorted(
        {
            rate
            for group in (facts["attacks"], facts["controls"])
            for summary in group.values()
            for rate in summary["tpr"]
        },
        key=float,
        reverse=True,
    )
    span = _span(
        summary["auc"]
        for group in (facts["attacks"], facts["controls"])
        for summary in group.values()
    )
    rows = [
        _attack(
            name,
            summary,
            span,
            kind="learned" if name == LEARNED else "baseline",
            primary=name == run.summary["primary"],
        )
        for name, summary in facts["attacks"].items()
    ]
    rows.sort(
        key=lambda row: -math.inf if row.auc["value"] is None else row.auc["value"],
        reverse=True,
    )
    inside = run.texts.combination == place
    roc, curves = _roc(run, facts, inside)
    scores, scores_beyond = _histogram(run, inside, run.summary["primary"])
    losses, losses_beyond = _histogram(run, inside, "loss", losses=True)
    return CombinationView(
        anchor=anchor,
        facts=facts,
        rates=rates,
        attacks=rows,
        controls=[
            _attack(name, facts["controls"][name], span, kind="control")
            for name in dict.fromkeys((*CONTROLS, *facts["controls"]))
            if name in facts["controls"]
        ],
        roc=roc,
        curves=curves,
        scores=scores,
        scores_beyond=scores_beyond,
        losses=losses if facts["attacks"] else None,
        losses_beyond=losses_beyond,
    )


def compare(run: Run, views: list[CombinationView]) -> list[OverviewRow]:
    """One row a combination, for the table that stands above several of them."""
    primary = run.summary["primary"]
    combinations = run.summary["combinations"]
    own = [(each["attacks"].get(primary) or {}).get("auc") for each in combinations]
    span = _span(iter(own))
    gap_span = _span((each["loss_gap_nats"] for each in combinations), (0.0, 0.05))
    rows = []
    for view, facts, auc in zip(views, combinations, own, strict=True):
        rivals = {
            attack_name(name)[0]: value
            for name, summary in facts["attacks"].items()
            if name not in (primary, LEARNED) and (value := auc_of(summary)) is not None
        }
        best = max(rivals.items(), key=lambda item: item[1], default=None)
        gap = facts["loss_gap_nats"]
        rows.append(
            OverviewRow(
                anchor=view.anchor,
                facts=facts,
                auc=auc or EMPTY,
                auc_glyph=plots.interval_figure(**_bare(auc), span=span, origin=0.5),
                best=best,
                blind=auc_of(facts["controls"].get("blind")),
                gap=gap or EMPTY,
                gap_glyph=plots.interval_figure(
                    **_bare(gap), span=gap_span, origin=0.0
                ),
            )
        )
    return rows


def _attack(
    name: str,
    summary: Mapping[str, Any],
    span: tuple[Number, Number],
    *,
    kind: str,
    primary: bool = False,
) -> AttackRow:
    label, definition = attack_name(name)
    auc = summary["auc"] or EMPTY
    return AttackRow(
        label=label,
        definition=definition,
        kind=kind,
        primary=primary,
        auc=auc,
        glyph=plots.interval_figure(**_bare(auc), span=span, origin=0.5),
        tpr=summary["tpr"],
        members=summary["n_members"],
        nonmembers=summary["n_nonmembers"],
        missing=summary["n_missing"],
    )


def _bare(interval: Mapping[str, Any] | None) -> dict[str, Number | None]:
    return {name: (interval or EMPTY)[name] for name in EMPTY}


def _span(
    intervals: Iterator[Mapping[str, Any] | None],
    must: tuple[Number, ...] = (0.45, 1.0),
) -> tuple[Number, Number]:
    """A common scale for the interval glyphs of one table."""
    seen = [
        interval[name]
        for interval in intervals
        if interval
        for name in ("value", "low", "high")
        if interval[name] is not None
    ]
    return min([*must, *seen]), max([*must, *seen])


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _roc(
    run: Run, facts: Mapping[str, Any], inside: np.ndarray
) -> tuple[Markup | None, list[Curve]]:
    attacks, texts = facts["attacks"], run.texts
    lead = LEARNED if LEARNED in attacks else run.summary["primary"]
    ranked = sorted(
        (name for name in attacks if auc_of(attacks[name]) is not None),
        key=lambda name: (name != lead, -(auc_of(attacks[name]) or 0)),
    )
    bands, curves, nonmember_count = {}, [], 0
    for name in ranked[: 1 + BASELINES]:
        if name not in texts.scores:
            continue
        score = texts.scores[name]
        members = _finite(score[inside & (texts.labels == 1)])
        nonmembers = _finite(score[inside & (texts.labels == 0)])
        if not len(members) or not len(nonmembers):
            continue
        label = attack_name(name)[0]
        curves.append(Curve(label, plots.CURVES[len(curves)], auc_of(attacks[name])))
        bands[label] = roc_band(members, nonmembers)
        nonmember_count = max(nonmember_count, len(nonmembers))
    if not bands:
        return None, []
    return plots.roc_figure(bands, nonmember_count), curves


def _histogram(
    run: Run, inside: np.ndarray, name: str, *, losses: bool = False
) -> tuple[Markup | None, int]:
    """Distribution of a score by membership; `losses` turns the sign of the loss."""
    texts = run.texts
    if name not in texts.scores:
        return None, 0
    values = -texts.scores[name] if losses else texts.scores[name]
    kinds = (
        ("non-members", "nonmember", 0),
        ("members", "member", 1),
        ("texts", "unknown", UNKNOWN),
    )
    groups = [
        plots.Group(label, css, found)
        for label, css, kind in kinds
        if len(found := _finite(values[inside & (texts.labels == kind)]))
    ]
    if not groups:
        return None, 0
    label = attack_name(name)[0]
    axis = "mean loss per token, nats" if losses else f"{label} score"
    return plots.histogram_figure(groups, axis, means=losses)
