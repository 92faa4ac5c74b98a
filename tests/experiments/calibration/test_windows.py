"""The table of false positives by length, against plain loops."""

from pathlib import Path

import numpy as np

from experiments.calibration.windows import SCORES, Windows, table


def test_rates_by_length_are_counted():
    rng = np.random.default_rng(0)
    label = np.repeat([1, 0], [20, 80])
    windows = rng.choice([1, 2, 3, 6], 100)
    found = {"label": label, "windows": windows}
    for rule in ("cut", "mean", "max"):
        found |= {f"{rule} {name}": rng.normal(size=100) for name in SCORES}
    config = Windows(out=Path("out"), halvings=3, seed=5)
    head, _, *rows = table(found, config)
    names = [cell.strip() for cell in head.split("|")[4:-2]]
    assert [name.split(" (")[0] for name in names] == [
        *("of 1", "of 2", "of 3 to 4", "of 5 to 8")
    ]
    row = next(line for line in rows if line.startswith("| ez | max |"))
    scores, outside = found["max ez"], np.flatnonzero(label == 0)
    low = {1: [], 2: [], 3: [], 6: []}
    for number in range(3):
        order = np.random.default_rng([5, number]).permutation(outside)
        held, rest = order[:40], order[40:]
        for text in held:
            p_value = (1 + sum(scores[rest] >= scores[text])) / 41
            low[int(windows[text])].append(p_value <= 0.05)
    together = np.concatenate([*low.values()])
    every = [together.mean(), *map(np.mean, low.values())]
    members = [(1 + sum(scores[outside] >= x)) / 81 <= 0.05 for x in scores[:20]]
    expected = [f"{100 * rate:.1f} %" for rate in (*every, np.mean(members))]
    assert [cell.strip() for cell in row.split("|")[3:-1]] == expected
