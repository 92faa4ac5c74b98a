"""Representations beside the retrained model's: layer by layer, and in the plane."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lt_mia_jax.report.drawing.lines import Line, line_figure, scatter_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.forgetting.attacks import MODELS
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.tables import Cell, Column, Row, Table
from lt_mia_jax.verification.records import LayerSimilarity, UnlearningRun

_TEXTS = {"forget": "forgotten", "retain": "kept"}
"""What the texts of a set are called."""


def layer_figures(run: UnlearningRun) -> Iterator[Figure]:
    """Similarity to the retrained model by layer, then texts in the plane."""
    for part, found in (run.verification.layers or {}).items():
        yield _similarity(_TEXTS.get(part, part), found)
    for part, models in (run.verification.map or {}).items():
        names = [name for name in ("before", "retrained", "after") if name in models]
        clouds = {name: (MODELS[name], np.array(models[name])) for name in names}
        yield Figure(
            scatter_figure(clouds),
            [(f"swatch {MODELS[name]}", name) for name in names],
            f"{_TEXTS.get(part, part).capitalize()} texts in the plane.",
            "Two principal components of the last layer, one point a text and model. "
            "Distances in the plane leave out most of the space.",
        )


def _similarity(texts: str, found: LayerSimilarity) -> Figure:
    lines = [
        Line(name, MODELS[name], np.arange(len(y), dtype=float), np.array(y, float))
        for name, y in found.models.items()
    ]
    count = len(lines[0].x)
    step = max(1, -(-count // 12))
    return Figure(
        line_figure(
            lines,
            x_label="layers passed",
            y_label="linear CKA",
            ticks={n: str(n) for n in range(0, count, step)},
        ),
        [(f"curve {line.css}", line.name) for line in lines],
        f"Similarity to the retrained model, {texts} texts.",
        f"Linear CKA of the streams at {found.tokens:,} tokens that predict answers; "
        "1 is the same up to rotation and scale.",
    )


def layer_tables(
    layers: Mapping[str, Mapping[str, Sequence[float]]], place: Place
) -> Iterator[Table]:
    """Similarity to the retrained model, a row a method and a column a layer."""
    for part, rows in layers.items():
        low = min(value for row in rows.values() for value in row)
        count = len(next(iter(rows.values())))
        yield Table(
            place.id(f"layers-{part}"),
            f"Linear CKA to the retrained model on {_TEXTS.get(part, part)} texts, by "
            f"layers passed. Darker is less similar, from 1 to {low:.3f}.",
            [Column("Method", kind="text"), *(Column(str(n)) for n in range(count))],
            [
                Row(
                    name,
                    [
                        Cell(v, f"{v:.3f}", heat=(1 - v) / max(1 - low, 1e-9))
                        for v in row
                    ],
                )
                for name, row in rows.items()
            ],
            css="heat",
        )
