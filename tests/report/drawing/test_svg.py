import re

import numpy as np
import pytest
from markupsafe import Markup

from lt_mia_jax.report.drawing import svg


def vertices(data: str) -> np.ndarray:
    """Corner points of a path made of M, L, H and V."""
    points, x, y = [], 0.0, 0.0
    for command, rest in re.findall(r"([MLHV])([^MLHVZ]*)", data):
        numbers = [float(each) for each in rest.split()]
        if command in "ML":
            x, y = numbers
        elif command == "H":
            x = numbers[0]
        else:
            y = numbers[0]
        if not points or points[-1] != (x, y):
            points.append((x, y))
    return np.array(points)


def test_scale_maps_ends_and_clips():
    scale = svg.Scale(0.01, 1, 50, 250, log=True)
    np.testing.assert_allclose(
        scale(np.array([0.01, 0.1, 1, 0, 5])), [50, 150, 250, 50, 250]
    )


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 5.7), (1e-7, 3e-7), (0, 12345), (2.2, 2.9)]
)
def test_nice_ticks_are_inside_and_few(low, high):
    ticks = np.array(svg.nice_ticks(low, high))
    assert 2 <= len(ticks) <= 11
    assert (ticks >= low - 1e-12).all()
    assert (ticks <= high * (1 + 1e-12)).all()


def test_staircase_keeps_every_step():
    x, y = np.array([0.0, 10, 20, 30, 40]), np.array([5.0, 5, 3, 3, 1])
    corners = vertices(svg.staircase(x, y))
    assert corners.tolist() == [[0, 5], [20, 5], [20, 3], [40, 3], [40, 1]]


def test_band_goes_out_high_and_back_low():
    x = np.array([0.0, 10, 20])
    low, high = np.array([9.0, 8, 7]), np.array([5.0, 5, 2])
    data = svg.band(x, low, high)
    assert data.endswith("Z")
    expected = [[0, 5], [20, 5], [20, 2], [20, 7], [20, 8], [10, 8], [10, 9], [0, 9]]
    assert [point.tolist() for point in vertices(data)] == expected


def test_text_and_labels_are_escaped():
    drawn = svg.figure(10, 10, [svg.text(0, 0, "<b>")], 'a "quoted" <label>')
    assert isinstance(drawn, Markup)
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn
    assert "&lt;label&gt;" in drawn
    assert '"quoted"' not in drawn
