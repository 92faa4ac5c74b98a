"""The texts as a whole: the dataset verdict and the calibration of p-values."""

import numpy as np
from markupsafe import Markup

from lt_mia_jax.report.drawing.calibration import calibration_figure
from lt_mia_jax.report.drawing.svg import Figure
from lt_mia_jax.report.fragments import show
from lt_mia_jax.report.membership.run import Run
from lt_mia_jax.report.panels import Place
from lt_mia_jax.report.wording import NBSP, count, general, p_text


def verdict(run: Run, place: Place) -> Markup:
    """The test of all texts together."""
    del place
    found = run.summary.dataset
    assert found is not None
    decided = f"{p_text(found.p_value)} (decided at {general(found.alpha)})"
    size = found.effect
    value, low, high = (general(end, 3) for end in (size.value, size.low, size.high))
    return show.facts(
        [
            ("Decision", found.decision),
            ("p-value", decided),
            ("Suspect texts", count(found.n_suspect)),
            ("Non-members", count(found.n_nonmembers)),
            ("Method", found.method),
            ("Effect size", f"{value} [{low}, {high}]"),
        ]
    )


def has_calibration(run: Run) -> bool:
    """Whether there are p-values to draw."""
    found = run.summary.calibration
    return found is not None and bool(found.p_values or found.nonmember_p_values)


def calibration(run: Run, place: Place) -> Markup:
    """Distribution of the p-values against what they promise."""
    del place
    found = run.summary.calibration
    assert found is not None
    audited = np.asarray(found.p_values, float)
    held_out = np.asarray(found.nonmember_p_values, float)
    key = []
    if len(audited):
        key = [("curve member", f"texts under audit ({count(len(audited))})")]
    if len(held_out):
        name = f"held-out non-members ({count(len(held_out))})"
        key += [("curve nonmember", name), ("ks", f"95{NBSP}% band")]
    p = f" (Kolmogorov-Smirnov p = {p_text(found.ks_p)})"
    paragraphs = (
        "If the p-values mean what they say, those of texts the model has never seen "
        "are uniform: their curve follows the diagonal and stays in the band. Here one "
        "half of the known non-members was scored against the other half"
        f"{'' if found.ks_p is None else p}.",
        "A curve of the audited texts above the diagonal means more small p-values "
        "than chance gives, which is what training on some of them would cause.",
        "The p-value of a text is (1 + the number of non-members scored at least as "
        f"high) divided by (n + 1), with n = {count(found.n_calibration)}. The band is "
        "that of the two-sample Kolmogorov-Smirnov statistic, since both halves are "
        "finite.",
    )
    drawn = calibration_figure(held_out, audited)
    return show.beside(Figure(drawn, key, "", "", tall=True), paragraphs)
