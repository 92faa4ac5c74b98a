"""The texts with the highest scores, and what is peculiar about texts."""

import math
from collections import Counter

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report.fragments import show
from lt_mia_jax.report.membership.run import UNKNOWN, Run
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import Cell, Column, Row, Table, words
from lt_mia_jax.report.wording import (
    FLAGS,
    attack_name,
    count,
    general,
    with_bounds,
)

TOP_TEXTS = 50
_LABELS = {1: "member", 0: "non-member", UNKNOWN: ""}


def highest(run: Run, place: Place) -> Markup:
    """The texts with the highest scores; columns without a value are left out."""
    texts = run.texts
    names = [each.name for each in run.summary.combinations]
    score = texts.scores[run.summary.primary]
    # Stable, so equal scores keep the order of the file; missing scores go last.
    order = np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")
    top = order[:TOP_TEXTS].tolist()
    columns: list[tuple[Column, list[Cell]]] = []
    if len(names) > 1:
        homes = [words(names[texts.combination[i]]) for i in top]
        columns.append((Column("Combination", kind="text"), homes))
    hint = "smallest false discovery rate at which the text is called a member"
    for column, values, digits, zeros in (
        (Column("Score", sorted="descending"), score, 4, True),
        (Column("Probability"), texts.probability, 3, True),
        (Column("p-value"), texts.p_value, 2, False),
        (Column("q-value", hint), texts.q_value, 2, False),
    ):
        if values is score or np.isfinite(values).any():
            cells = [
                Cell(None if math.isnan(x) else x, general(x, digits, zeros=zeros))
                for x in values[top].tolist()
            ]
            columns.append((column, cells))
    if (texts.labels != UNKNOWN).any():
        truth = [_LABELS[int(texts.labels[i])] for i in top]
        cells = [words(label, f"truth {label}") for label in truth]
        columns.append((Column("Truth", kind="text"), cells))
    tokens = [Cell(n, count(n)) for n in texts.n_tokens[top].tolist()]
    flags = [words(", ".join(texts.flags[i])) for i in top]
    columns += [(Column("Tokens"), tokens), (Column("Flags", kind="text"), flags)]
    rows = [
        Row(Markup("<code>{}</code>").format(texts.ids[i]), cells)
        for i, *cells in zip(top, *(cells for _, cells in columns), strict=True)
    ]
    total = len(texts.ids)
    return show.table(
        Table(
            place.id("top"),
            f"The {min(TOP_TEXTS, total)} highest of {count(total)} texts by "
            f"{attack_name(run.summary.primary).label} score. All are in scores.jsonl; "
            "contents are left out on purpose.",
            [Column("Text id", kind="text"), *(column for column, _ in columns)],
            rows,
            css="texts",
        )
    )


def flags(run: Run, _: Place) -> Markup:
    """How many texts carry each flag, and what it means."""
    rows = run.texts.flags
    # A flag may carry a detail, as in "short: 7 scored tokens".
    found = Counter(name for row in rows for name in {f.split(":")[0] for f in row})
    if not found:
        return Markup("<p>No text carries a flag.</p>")
    flagged, total = count(sum(map(bool, rows))), count(len(rows))
    text = f"{flagged} of {total} texts carry at least one flag."
    pairs = [
        (
            name.replace("_", " "),
            with_bounds(count(n), FLAGS[name]) if name in FLAGS else count(n),
        )
        for name, n in found.most_common()
    ]
    return Markup("<p>{}</p>{}").format(text, show.facts(pairs))
