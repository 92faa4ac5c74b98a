"""Several combinations of model and corpus beside each other."""

from markupsafe import Markup

from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.records import TEXT_ONLY
from lt_mia_jax.report.fragments import show
from lt_mia_jax.report.membership.attacks import combination
from lt_mia_jax.report.membership.findings import auc_of, best_rival
from lt_mia_jax.report.membership.run import Run
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import (
    Cell,
    Column,
    Row,
    Table,
    common_span,
    estimate_cell,
    words,
)
from lt_mia_jax.report.wording import NBSP, attack_name, count, unit

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
