"""Run directories turned into what the page shows: rows, tiles, figures."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report import plots
from lt_mia_jax.report.checks import Check, auc_of, checks
from lt_mia_jax.report.curves import roc_band
from lt_mia_jax.report.data import UNKNOWN, Run
from lt_mia_jax.report.wording import (
    CONTROLS,
    DECISIONS,
    FLAGS,
    LEARNED,
    attack_name,
    bounds,
    count,
    general,
    p_text,
    percentage,
    unit,
)

TOP_TEXTS = 50
BASELINES = 3
"""Curves beside the learned attack in a ROC figure."""


class Tile(NamedTuple):
    """One headline number."""

    label: str
    value: str
    detail: str


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
    auc: float | None


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
    best: tuple[str, float] | None
    blind: float | None
    gap: Mapping[str, Any] | None
    gap_glyph: Markup


class TextRow(NamedTuple):
    """One text of the list of highest scores."""

    id: str
    combination: str
    score: float
    probability: float
    p_value: float
    tokens: int
    label: str
    flags: tuple[str, ...]


class RunView(NamedTuple):
    """Everything the template shows of one run."""

    anchor: str
    summary: Mapping[str, Any]
    primary: str
    checks: list[Check]
    tiles: list[Tile]
    overview: list[OverviewRow]
    combinations: list[CombinationView]
    calibration: Markup | None
    texts: list[TextRow]
    total_texts: int
    has: Mapping[str, bool]
    flags: list[tuple[str, str, int]]
    flagged: int
    config: str
    effect: list[tuple[str, str]]


def view_run(run: Run, index: int) -> RunView:
    """The view of the run that stands at `index` on the page."""
    summary, texts = run.summary, run.texts
    anchor = f"run-{index + 1}"
    combinations = [
        _combination(run, place, f"{anchor}-{place + 1}")
        for place in range(len(summary["combinations"]))
    ]
    calibration = summary["calibration"]
    figure = None
    if calibration and (calibration["p_values"] or calibration["nonmember_p_values"]):
        figure = plots.calibration_figure(
            np.asarray(calibration["nonmember_p_values"], float),
            np.asarray(calibration["p_values"], float),
        )
    flags = Counter(flag for row in texts.flags for flag in set(row))
    effect = (summary["dataset"] or {}).get("effect") or {}
    return RunView(
        anchor=anchor,
        summary=summary,
        primary=attack_name(summary["primary"])[0],
        checks=checks(run),
        tiles=list(_tiles(run)),
        overview=_overview(run, combinations) if len(combinations) > 1 else [],
        combinations=combinations,
        calibration=figure,
        texts=_top_texts(run),
        total_texts=len(texts.ids),
        has={
            "probability": bool(np.isfinite(texts.probability).any()),
            "p_value": bool(np.isfinite(texts.p_value).any()),
            "label": bool((texts.labels != UNKNOWN).any()),
            "combination": len(combinations) > 1,
        },
        flags=[
            (name, FLAGS.get(name, ""), number) for name, number in flags.most_common()
        ],
        flagged=sum(bool(row) for row in texts.flags),
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
        effect=[(name.replace("_", " "), _value(item)) for name, item in effect.items()],
    )


def _value(item: Any) -> str:
    if isinstance(item, float | int) and not isinstance(item, bool):
        return general(item)
    return item if isinstance(item, str) else json.dumps(item)


def _combination(run: Run, place: int, anchor: str) -> CombinationView:
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
    rows.sort(key=lambda row: -math.inf if row.auc["value"] is None else row.auc["value"], reverse=True)
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


def _attack(
    name: str,
    summary: Mapping[str, Any],
    span: tuple[float, float],
    *,
    kind: str,
    primary: bool = False,
) -> AttackRow:
    label, definition = attack_name(name)
    auc = summary["auc"] or {"value": None, "low": None, "high": None}
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


def _bare(interval: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {name: interval and interval[name] for name in ("value", "low", "high")}


def _span(
    intervals: Iterator[Mapping[str, Any] | None], must: tuple[float, ...] = (0.45, 1.0)
) -> tuple[float, float]:
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


def _overview(run: Run, views: list[CombinationView]) -> list[OverviewRow]:
    primary = run.summary["primary"]
    combinations = run.summary["combinations"]
    empty = {"value": None, "low": None, "high": None}
    own = [(each["attacks"].get(primary) or {}).get("auc") for each in combinations]
    span = _span(iter(own))
    gap_span = _span((each["loss_gap_nats"] for each in combinations), (0.0, 0.05))
    rows = []
    for view, facts, auc in zip(views, combinations, own, strict=True):
        rivals = {
            attack_name(name)[0]: value
            for name, summary in facts["attacks"].items()
            if name not in (primary, LEARNED)
            and (value := auc_of(summary)) is not None
        }
        best = max(rivals, key=lambda name: rivals[name], default=None)
        gap = facts["loss_gap_nats"]
        rows.append(
            OverviewRow(
                anchor=view.anchor,
                facts=facts,
                auc=auc or empty,
                auc_glyph=plots.interval_figure(**_bare(auc), span=span, origin=0.5),
                best=None if best is None else (best, rivals[best]),
                blind=auc_of(facts["controls"].get("blind")),
                gap=gap or empty,
                gap_glyph=plots.interval_figure(
                    **_bare(gap), span=gap_span, origin=0.0
                ),
            )
        )
    return rows


def _tiles(run: Run) -> Iterator[Tile]:
    summary = run.summary
    primary = attack_name(summary["primary"])[0]
    dataset = summary["dataset"]
    if dataset is not None:
        yield Tile(
            "Dataset verdict",
            DECISIONS.get(dataset["decision"], dataset["decision"]),
            f"p = {p_text(dataset['p_value'])} against \N{GREEK SMALL LETTER ALPHA} = "
            f"{dataset['alpha']:g}; {count(dataset['n_suspect'])} suspect texts, "
            f"{count(dataset['n_nonmembers'])} non-members",
        )
    results = [
        attack
        for each in summary["combinations"]
        if (attack := each["attacks"].get(summary["primary"])) is not None
    ]
    aucs = [attack["auc"] for attack in results if auc_of(attack) is not None]
    if aucs:
        yield _tile(f"AUC of {primary}", aucs)
    quoted = [
        rate
        for rate in sorted({rate for attack in results for rate in attack["tpr"]}, key=float)
        if all(
            rate in attack["tpr"]
            and not attack["tpr"][rate]["refused"]
            and (attack["tpr"][rate]["conservative"] or {}).get("value") is not None
            for attack in results
        )
    ]
    for rate in quoted[:1]:
        found = [attack["tpr"][rate]["conservative"] for attack in results]
        yield _tile(f"TPR at {100 * float(rate):g} % FPR", found, rate=True)
    blind = [
        each["controls"]["blind"]["auc"]
        for each in summary["combinations"]
        if auc_of(each["controls"].get("blind")) is not None
    ]
    if blind:
        yield _tile("AUC without a model", blind)
    gaps = [
        gap
        for each in summary["combinations"]
        if (gap := each["loss_gap_nats"]) and gap["value"] is not None
    ]
    if gaps:
        yield _tile("Loss gap, nats per token", gaps)
    calibration = summary["calibration"]
    if calibration and calibration["p_values"]:
        values = np.asarray(calibration["p_values"])
        yield Tile(
            "Texts with p \N{LESS-THAN OR EQUAL TO} .05",
            percentage(float((values <= 0.05).mean())),
            f"of {count(len(values))}; 5 % would by chance",
        )
    yield _size_tile(run)


def _tile(label: str, intervals: list[Mapping[str, Any]], *, rate: bool = False) -> Tile:
    shown = percentage if rate else unit
    if len(intervals) == 1:
        interval = intervals[0]
        detail = bounds(dict(interval), rate=rate)
        return Tile(label, shown(interval["value"]), f"95 % interval {detail}")
    values = [interval["value"] for interval in intervals]
    mean = sum(values) / len(values)
    return Tile(
        label,
        shown(mean),
        f"mean of {len(values)} combinations, from {shown(min(values))} to "
        f"{shown(max(values))}",
    )


def _size_tile(run: Run) -> Tile:
    counts = [each["counts"] for each in run.summary["combinations"]]
    total = sum(each["texts"] for each in counts)
    if any(each["members"] is None or each["nonmembers"] is None for each in counts):
        return Tile("Texts", count(total), "membership unknown")
    return Tile(
        "Texts",
        count(total),
        f"{count(sum(each['members'] for each in counts))} members, "
        f"{count(sum(each['nonmembers'] for each in counts))} non-members",
    )


def _top_texts(run: Run) -> list[TextRow]:
    texts = run.texts
    score = texts.scores[run.summary["primary"]]
    # Stable, so equal scores keep the order of the file; missing scores go last.
    order = np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")
    names = [each["name"] for each in run.summary["combinations"]]
    labels = {1: "member", 0: "non-member", UNKNOWN: ""}
    return [
        TextRow(
            id=texts.ids[row],
            combination=names[texts.combination[row]],
            score=float(score[row]),
            probability=float(texts.probability[row]),
            p_value=float(texts.p_value[row]),
            tokens=int(texts.n_tokens[row]),
            label=labels[int(texts.labels[row])],
            flags=texts.flags[row],
        )
        for row in order[:TOP_TEXTS].tolist()
    ]
