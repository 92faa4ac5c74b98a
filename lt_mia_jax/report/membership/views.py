"""Run directories turned into what the page shows: rows, tiles, figures."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report.drawing import plots
from lt_mia_jax.report.membership.checks import Check, auc_of, checks
from lt_mia_jax.report.membership.combinations import (
    CombinationView,
    OverviewRow,
    compare,
    view_combination,
)
from lt_mia_jax.report.membership.data import UNKNOWN, Run
from lt_mia_jax.report.wording import (
    DECISIONS,
    FLAGS,
    attack_name,
    bounds,
    count,
    general,
    p_text,
    percentage,
    unit,
)

TOP_TEXTS = 50


class Tile(NamedTuple):
    """One headline number."""

    label: str
    value: str
    detail: str


class TextRow(NamedTuple):
    """One text of the list of highest scores."""

    id: str
    combination: str
    score: float
    probability: float
    p_value: float
    q_value: float
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
        view_combination(run, place, f"{anchor}-{place + 1}")
        for place in range(len(summary["combinations"]))
    ]
    calibration = summary["calibration"]
    figure = None
    if calibration and (calibration["p_values"] or calibration["nonmember_p_values"]):
        figure = plots.calibration_figure(
            np.asarray(calibration["nonmember_p_values"], float),
            np.asarray(calibration["p_values"], float),
        )
    # A flag may carry a detail, as in "short: 7 scored tokens".
    flags = Counter(
        name for row in texts.flags for name in {flag.split(":")[0] for flag in row}
    )
    effect = (summary["dataset"] or {}).get("effect") or {}
    return RunView(
        anchor=anchor,
        summary=summary,
        primary=attack_name(summary["primary"])[0],
        checks=checks(run),
        tiles=list(_tiles(run)),
        overview=compare(run, combinations) if len(combinations) > 1 else [],
        combinations=combinations,
        calibration=figure,
        texts=_top_texts(run),
        total_texts=len(texts.ids),
        has={
            "probability": bool(np.isfinite(texts.probability).any()),
            "p_value": bool(np.isfinite(texts.p_value).any()),
            "q_value": bool(np.isfinite(texts.q_value).any()),
            "label": bool((texts.labels != UNKNOWN).any()),
            "combination": len(combinations) > 1,
        },
        flags=[
            (name, FLAGS.get(name, ""), number) for name, number in flags.most_common()
        ],
        flagged=sum(bool(row) for row in texts.flags),
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
        effect=_effect(effect),
    )


def _effect(effect: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values; an estimate with its interval becomes one entry."""
    if set(effect) == {"value", "low", "high"}:
        size = general(effect["value"], 3)
        ends = f"[{general(effect['low'], 3)}, {general(effect['high'], 3)}]"
        return [("effect size", f"{size} {ends}")]
    return [(name.replace("_", " "), _value(item)) for name, item in effect.items()]


def _value(item: Any) -> str:
    if isinstance(item, float | int) and not isinstance(item, bool):
        return general(item)
    return item if isinstance(item, str) else json.dumps(item)


def _tiles(run: Run) -> Iterator[Tile]:
    summary = run.summary
    primary = attack_name(summary["primary"])[0]
    dataset = summary["dataset"]
    if dataset is not None:
        yield Tile(
            "Dataset verdict",
            str(DECISIONS.get(dataset["decision"]) or dataset["decision"]),
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
        for rate in sorted(
            {rate for attack in results for rate in attack["tpr"]}, key=float
        )
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
            "Texts with p \N{LESS-THAN OR EQUAL TO} 0.05",
            percentage(float((values <= 0.05).mean())),
            f"of {count(len(values))}; chance gives 5 %",
        )
    yield _size_tile(run)


def _tile(
    label: str, intervals: list[Mapping[str, Any]], *, rate: bool = False
) -> Tile:
    shown = percentage if rate else unit
    if len(intervals) == 1:
        interval = intervals[0]
        detail = bounds(dict(interval), rate=rate)
        return Tile(
            label,
            shown(interval["value"]),
            f"95\N{NO-BREAK SPACE}% interval {detail}" if detail else "",
        )
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
            q_value=float(texts.q_value[row]),
            tokens=int(texts.n_tokens[row]),
            label=labels[int(texts.labels[row])],
            flags=texts.flags[row],
        )
        for row in order[:TOP_TEXTS].tolist()
    ]
