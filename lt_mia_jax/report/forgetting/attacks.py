"""Attacks on forgotten texts, as figures: ROC curves and losses."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, LEARNED, describe
from lt_mia_jax.report.drawing.histograms import Group, histogram_figure
from lt_mia_jax.report.drawing.roc import CURVES, roc_band, roc_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.verification.records import UnlearningRun

MODELS = {"before": "second", "after": "lead", "retrained": "third"}
"""CSS class of each model's curves."""


def attack_figures(run: UnlearningRun) -> Iterator[Figure]:
    """ROC curves of the strongest attack, and a histogram of losses a model."""
    scores = run.verification.scores
    if not scores:
        return
    attack = LEARNED if LEARNED in scores["after"]["forget"] else "min_k"
    bands, key = {}, []
    # The order in which a ROC figure gives out the classes of `MODELS`.
    for name in sorted(scores, key=lambda name: CURVES.index(MODELS[name])):
        sides = (_finite(scores[name][side][attack]) for side in ("forget", "holdout"))
        bands[name] = roc_band(*sides)
        key.append((f"curve {MODELS[name]}", name))
    yield Figure(
        roc_figure(bands, len(scores["after"]["holdout"][attack])),
        [*key, ("chance", "chance")],
        f"ROC of {describe(attack, CARD_FRACTION).label}.",
        "Forgotten against unseen texts under each model. After good unlearning the "
        "curve is that of the retrained model; one far below the diagonal gives the "
        "forgotten texts away as well.",
        tall=True,
    )
    for name in MODELS:
        if name in scores:
            yield _losses(name, scores[name])


def _losses(name: str, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    groups = [
        Group("unseen texts", "nonmember", -_finite(scores["holdout"]["loss"])),
        Group("forgotten texts", "member", -_finite(scores["forget"]["loss"])),
    ]
    axis = f"mean loss per token {name}, nats"
    drawn, beyond = histogram_figure(groups, axis, means=True)
    more = f" The end bins also hold {beyond} more." if beyond else ""
    return Figure(
        drawn,
        [("outline member", "forgotten"), ("outline nonmember", "unseen")],
        f"Losses, {name}.",
        "Vertical lines are means." + more,
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.array(values, float)
    return found[np.isfinite(found)]
