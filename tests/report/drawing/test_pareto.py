"""Runs in the plane of forgetting and utility: the front and its labels."""

import itertools
import re

import numpy as np

from lt_mia_jax.report.drawing.pareto import Spot, front, pareto_figure


def test_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 6, (40, 2)).astype(float)
    spots = [Spot(str(i), "even", *xy) for i, xy in enumerate(points.tolist())]
    found = {spot.name for spot in front(spots)}
    for i, (x, y) in enumerate(points):
        above = (points >= [x, y]).all(axis=1) & (points > [x, y]).any(axis=1)
        assert (str(i) in found) == (not above.any())


def test_labels_keep_clear_of_each_other():
    rng = np.random.default_rng(1)
    spots = [
        Spot(f"method {i}", "even", *xy)
        for i, xy in enumerate(rng.random((20, 2)).tolist())
    ]
    figure = pareto_figure(spots, x_label="x", y_label="y")
    boxes = []
    for x, y, anchor, name in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="name">(.*?)<',
        figure,
    ):
        size = 6 * len(name)
        left = float(x) - {"start": 0, "middle": size / 2, "end": size}[anchor]
        boxes.append((left, float(y) - 9, left + size, float(y)))
    assert len(boxes) == 20
    hidden = [
        (a, b)
        for a, b in itertools.combinations(boxes, 2)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert len(hidden) <= 1
