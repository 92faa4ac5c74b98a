"""Whether what was forgotten comes back with a little training."""

from collections.abc import Iterator

import numpy as np

from lt_mia_jax.report.drawing.lines import Line, line_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.forgetting.attacks import MODELS
from lt_mia_jax.report.wording import bounds, unit
from lt_mia_jax.verification.records import UnlearningRun


def relearning_figures(run: UnlearningRun) -> Iterator[Figure]:
    """Probability of forgotten answers while others are taught again."""
    found = run.verification.relearning
    if found is None:
        return
    steps = np.log1p(np.array(found.steps, float))
    lines = [
        Line(name, MODELS[name], steps, np.array(y, float))
        for name, y in found.models.items()
    ]
    area = ""
    if found.area is not None:
        shown = f"{unit(found.area.value)} {bounds(found.area)}".rstrip()
        area = f" The area between is {shown}."
    yield Figure(
        line_figure(
            lines,
            x_label="training steps",
            y_label="probability of the answer",
            ticks={float(np.log1p(n)): str(n) for n in found.steps},
        ),
        [(f"curve {line.css}", line.name) for line in lines],
        "Relearning.",
        f"{found.taught} of the forgotten questions are taught again; these are "
        f"{found.asked} others.{area} A steeper curve than the retrained model's says "
        "that the knowledge was hidden and not gone.",
    )
