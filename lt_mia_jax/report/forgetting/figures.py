"""What is drawn of a run: attacks, representations by layer, and relearning."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, LEARNED, describe
from lt_mia_jax.report.drawing.histograms import Group, histogram_figure
from lt_mia_jax.report.drawing.lines import Line, line_figure, scatter_figure
from lt_mia_jax.report.drawing.roc import Sides, roc_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import Cell, Column, Row, Table
from lt_mia_jax.report.wording import bounds, unit
from lt_mia_jax.verification.records import Relearning, Scores, UnlearningRun

MODELS = {"before": "second", "after": "lead", "retrained": "third"}
"""CSS class of each model's curves."""
_TEXTS = {"forget": "forgotten", "retain": "kept"}
"""What the texts of a set are called."""


def figures(run: UnlearningRun) -> list[Figure]:
    """Everything that can be drawn of a run."""
    found = run.verification
    drawn = [*_attacks(found.scores)] if found.scores else []
    for part, similar in (found.layers or {}).items():
        count = len(similar.models["after"])
        drawn.append(
            line_figure(
                _lines(similar.models, np.arange(count, dtype=float)),
                ("layers passed", "linear CKA"),
                {n: str(n) for n in range(0, count, max(1, -(-count // 12)))},
                f"Similarity to the retrained model, {_TEXTS.get(part, part)} texts.",
                f"Linear CKA of the streams at {similar.tokens:,} tokens that predict "
                "answers; 1 is the same up to rotation and scale.",
            )
        )
    for part, models in (found.map or {}).items():
        names = [name for name in ("before", "retrained", "after") if name in models]
        drawn.append(
            scatter_figure(
                {name: (MODELS[name], np.array(models[name])) for name in names},
                f"{_TEXTS.get(part, part).capitalize()} texts in the plane.",
                "Two principal components of the last layer, one point a text and "
                "model. Distances in the plane leave out most of the space.",
            )
        )
    return [*drawn, _relearning(found.relearning)] if found.relearning else drawn


def _attacks(scores: Mapping[str, Mapping[str, Scores]]) -> Iterator[Figure]:
    """ROC curves of the strongest attack, and a histogram of losses a model."""

    def sides(model: str, attack: str) -> list[np.ndarray]:
        each = scores[model]
        found = (np.array(each[side][attack]) for side in ("forget", "holdout"))
        return [values[np.isfinite(values)] for values in found]

    attack = LEARNED if LEARNED in scores["after"]["forget"] else "min_k"
    names = [name for name in ("after", "before", "retrained") if name in scores]
    yield roc_figure(
        [Sides(name, MODELS[name], *sides(name, attack)) for name in names],
        f"ROC of {describe(attack, CARD_FRACTION).label}.",
        "Forgotten against unseen texts under each model. After good unlearning the "
        "curve is that of the retrained model; one far below the diagonal gives the "
        "forgotten texts away as well.",
    )
    for name in sorted(names, key=[*MODELS].index):
        forgotten, unseen = sides(name, "loss")
        groups = [
            Group("unseen texts", "nonmember", -unseen),
            Group("forgotten texts", "member", -forgotten),
        ]
        axis, title = f"mean loss per token {name}, nats", f"Losses, {name}."
        note = "Vertical lines are means."
        yield histogram_figure(groups, axis, title, note, means=True)


def _relearning(found: Relearning) -> Figure:
    """Probability of forgotten answers while others are taught again."""
    steps = np.log1p(np.array(found.steps, float))
    area = ""
    if found.area is not None:
        shown = f"{unit(found.area.value)} {bounds(found.area)}".rstrip()
        area = f" The area between is {shown}."
    return line_figure(
        _lines(found.models, steps),
        ("training steps", "probability of the answer"),
        {at: str(step) for at, step in zip(steps.tolist(), found.steps, strict=True)},
        "Relearning.",
        f"{found.taught} of the forgotten questions are taught again; these are "
        f"{found.asked} others.{area} A steeper curve than the retrained model's says "
        "that the knowledge was hidden and not gone.",
    )


def _lines(models: Mapping[str, Sequence[float]], x: np.ndarray) -> list[Line]:
    return [Line(n, MODELS[n], x, np.array(y, float)) for n, y in models.items()]


def layer_tables(
    layers: Mapping[str, Mapping[str, Sequence[float]]], place: Place
) -> Iterator[Table]:
    """Similarity to the retrained model, a row a method and a column a layer."""
    for part, rows in layers.items():
        low = min(value for row in rows.values() for value in row)
        count, span = len(next(iter(rows.values()))), max(1 - low, 1e-9)
        yield Table(
            place.id(f"layers-{part}"),
            f"Linear CKA to the retrained model on {_TEXTS.get(part, part)} texts, by "
            f"layers passed. Darker is less similar, from 1 to {low:.3f}.",
            [Column("Method", kind="text"), *(Column(str(n)) for n in range(count))],
            [
                Row(name, [Cell(v, f"{v:.3f}", heat=(1 - v) / span) for v in row])
                for name, row in rows.items()
            ],
            css="heat",
        )
