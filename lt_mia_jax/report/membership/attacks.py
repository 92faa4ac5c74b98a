"""The attacks on each combination of model and corpus: tables and figures."""

import math
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from lt_mia_jax.attacks.estimate import AttackSummary
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.records import TEXT_ONLY, CombinationSummary
from lt_mia_jax.report.drawing.histograms import Group, histogram_figure
from lt_mia_jax.report.drawing.roc import Sides, roc_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.fragments import show
from lt_mia_jax.report.membership.findings import auc_of, best_rival
from lt_mia_jax.report.membership.run import UNKNOWN, Run
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import (
    TOO_FEW,
    Cell,
    Column,
    Row,
    Span,
    Table,
    common_span,
    estimate_cell,
    rate_cell,
    words,
)
from lt_mia_jax.report.wording import (
    CONTROLS,
    NBSP,
    attack_name,
    bounds,
    count,
    percent,
    unit,
    with_bounds,
)

CURVES = ("lead", "second", "third", "fourth")
"""CSS classes of the curves of a ROC figure, the learned attack first."""
GROUPS = (
    ("non-members", "nonmember", 0),
    ("members", "member", 1),
    ("texts", "unknown", UNKNOWN),
)
"""Name, CSS class and label of the groups in histograms."""
_CONSERVATIVE = (
    "Attacks by AUC; below the line two controls, which should be near 0.5. TPR is the "
    "fraction of members found at the given false-positive rate (conservative: no more "
    f"than that rate on these texts). Brackets are 95{NBSP}% bootstrap intervals over "
    "texts; texts are members + non-members."
)
_INTERPOLATED = (
    "TPR linearly interpolated between the points of the ROC curve, as many papers "
    "report it; at rates decided by few false positives it is optimistic."
)


def combination(run: Run, index: int, place: Place) -> Markup:
    """Facts, attack tables and figures of the combination at `index`."""
    found = run.summary.combinations[index]
    parts = [show.facts([*_facts(found)])]
    if found.attacks:
        parts.append(show.table(_attacks(run, found, place)))
        interpolated = show.table(_attacks(run, found, place, interpolated=True))
        title = "Interpolated TPR, for comparison with the literature"
        parts.append(show.folded(title, interpolated))
    inside = run.texts.combination == index
    roc = _roc(run, found, inside)
    rest = (_scores(run, found, inside), _losses(run, found, inside))
    figures = [figure for figure in (roc, *rest) if figure]
    parts.append(show.figures(figures, "" if roc else "plain"))
    return Markup("\n").join(parts)


def _facts(found: CombinationSummary) -> Iterator[tuple[str, str]]:
    yield from (("Target", found.target), ("Reference", found.reference))
    yield "Corpus", found.corpus
    if found.unseen is not None:
        yield "Held out from attack training", "yes" if found.unseen else "no"
    gap = found.loss_gap_nats
    if gap and gap.value is not None:
        text = f"{unit(gap.value)} nats per token"
        yield "Loss gap", with_bounds(text, bounds(gap))
    if found.counts.flagged:
        flagged, texts = count(found.counts.flagged), count(found.counts.texts)
        yield "Flagged", f"{flagged} of {texts} texts"


def _attacks(
    run: Run, found: CombinationSummary, place: Place, *, interpolated: bool = False
) -> Table:
    every = [*found.attacks.values(), *found.controls.values()]
    rates = sorted({rate for each in every for rate in each.tpr}, key=float)[::-1]
    columns = [Column("Attack", kind="text")]
    if not interpolated:
        hint = "area under the ROC curve; 0.5 is guessing"
        columns.append(Column("AUC", hint, sorted="descending"))
    columns += [Column(f"TPR at {percent(float(rate))}") for rate in rates]
    if not interpolated:
        columns += [Column("Texts"), Column("Missing", "texts without a score")]
    span = common_span((each.auc for each in every), 0.45, 1.0)

    def row(name: str, result: AttackSummary, *, control: bool = False) -> Row:
        label, meaning = attack_name(name)
        lead = not control and name in (LEARNED, run.summary.primary)
        tag = ("learned" if name == LEARNED else "verdict") if lead else ""
        cells = [*_cells(result, rates, span, interpolated)]
        return Row(label, cells, meaning, tag, lead=lead, control=control)

    def strength(item: tuple[str, AttackSummary]) -> float:
        return -math.inf if item[1].auc.value is None else item[1].auc.value

    rows = [row(*i) for i in sorted(found.attacks.items(), key=strength, reverse=True)]
    controls = dict.fromkeys((*CONTROLS, *found.controls))
    rows += [
        row(name, found.controls[name], control=True)
        for name in controls
        if name in found.controls
    ]
    anchor = place.id("interpolated" if interpolated else "conservative")
    return Table(
        anchor, _INTERPOLATED if interpolated else _CONSERVATIVE, columns, rows
    )


def _cells(
    result: AttackSummary, rates: list[str], span: Span, interpolated: bool
) -> Iterator[Cell]:
    if not interpolated:
        yield estimate_cell(result.auc, span=span, origin=0.5)
    for rate in rates:
        tpr = result.tpr.get(rate)
        read = tpr and (tpr.interpolated if interpolated else tpr.conservative)
        refused = tpr and tpr.refused and not (read and read.value is not None)
        yield TOO_FEW if refused else rate_cell(read)
    if not interpolated:
        members, others = result.n_members, result.n_nonmembers
        yield Cell(members + others, f"{count(members)} + {count(others)}")
        yield Cell(result.n_missing, count(result.n_missing))


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _roc(run: Run, found: CombinationSummary, inside: np.ndarray) -> Figure | None:
    lead = LEARNED if LEARNED in found.attacks else run.summary.primary
    values = {name: each.auc.value for name, each in found.attacks.items()}
    known = {name: value for name, value in values.items() if value is not None}
    ranked = sorted(known, key=lambda name: (name != lead, -known[name]))
    curves = []
    for name in ranked[: len(CURVES)]:
        if name not in run.texts.scores:
            continue
        members, others = (
            _finite(run.texts.scores[name][inside & (run.texts.labels == label)])
            for label in (1, 0)
        )
        if len(members) and len(others):
            shown = f"{attack_name(name).label} {unit(known[name])}"
            curves.append(Sides(shown, CURVES[len(curves)], members, others))
    if not curves:
        return None
    return roc_figure(
        curves,
        "ROC on logarithmic axes.",
        "Both axes are logarithmic because an accusation needs few false positives: "
        f"what matters is the left. Bands are pointwise 95{NBSP}% bootstrap intervals; "
        "on the shaded strip fewer than ten false positives decide.",
    )


def _groups(run: Run, inside: np.ndarray, values: np.ndarray) -> list[Group]:
    return [
        Group(label, css, found)
        for label, css, kind in GROUPS
        if len(found := _finite(values[inside & (run.texts.labels == kind)]))
    ]


def _scores(run: Run, found: CombinationSummary, inside: np.ndarray) -> Figure | None:
    groups = _groups(run, inside, run.texts.scores[run.summary.primary])
    if not groups:
        return None
    label = attack_name(run.summary.primary).label
    caption = (
        "Fraction of each group per bin; the less they overlap, the more the model "
        "gives away."
        if found.attacks
        else "Fraction of texts per bin; higher means more likely a member."
    )
    return histogram_figure(groups, f"{label} score", f"Scores of {label}.", caption)


def _losses(run: Run, found: CombinationSummary, inside: np.ndarray) -> Figure | None:
    scores = run.texts.scores
    groups = _groups(run, inside, -scores["loss"]) if "loss" in scores else []
    if not groups or not found.attacks:
        return None
    gap = found.loss_gap_nats
    title = "Loss of the target"
    if gap and gap.value is not None:
        title += f": a gap of {unit(gap.value)} nats {bounds(gap)}"
    return histogram_figure(
        groups,
        "mean loss per token, nats",
        f"{title}.",
        "Vertical lines are means; the gap (non-members minus members) measures "
        "overfitting, which most attacks live on.",
        means=True,
    )


_COLUMNS = (
    Column("Combination", kind="text"),
    Column("AUC"),
    Column("Best other"),
    Column("Text-only"),
    Column("Loss gap"),
    Column("Texts"),
    Column("Held out", kind="text"),
)


def combinations(run: Run, place: Place) -> Markup:
    """A table of all of them, then each one by itself."""
    parts = [show.table(_overview(run, place))]
    for index, each in enumerate(run.summary.combinations):
        own = _place(place, index)
        opened = len(run.summary.combinations) <= 3 or index == 0
        body = combination(run, index, own)
        level = place.level + 1
        parts.append(show.combination(each.name, level, own.anchor, opened, body))
    return Markup("\n").join(parts)


def _place(place: Place, index: int) -> Place:
    return Place(place.id(str(index + 1)), place.level + 1)


def _overview(run: Run, place: Place) -> Table:
    primary = run.summary.primary
    every = run.summary.combinations
    own = [c.attacks[primary].auc if primary in c.attacks else None for c in every]
    span = common_span(own, 0.45, 1.0)
    gap_span = common_span((each.loss_gap_nats for each in every), 0.0, 0.05)
    rows = []
    for index, (each, auc) in enumerate(zip(every, own, strict=True)):
        best = best_rival(each, primary, LEARNED)
        baseline = auc_of(each.controls, TEXT_ONLY)
        members, others = count(each.counts.members), count(each.counts.nonmembers)
        cells = [
            estimate_cell(auc, span=span, origin=0.5),
            Cell(best[1], unit(best[1]), best[0]) if best else Cell(),
            Cell(baseline, unit(baseline)),
            estimate_cell(each.loss_gap_nats, span=gap_span, strong=False),
            Cell(each.counts.texts, f"{members} + {others}"),
            words({True: "yes", False: "no", None: "unknown"}[each.unseen]),
        ]
        rows.append(Row(each.name, cells, href=_place(place, index).anchor))
    return Table(
        place.id("overview"),
        f"{attack_name(primary).label} in each combination, with the best other "
        "attack, the text-only baseline, and how much lower the target's loss is on "
        "members (non-members minus members, nats per token). Texts are members + "
        f"non-members, brackets 95{NBSP}% intervals.",
        _COLUMNS,
        rows,
        css="",
    )
