"""An interval as small as a word, beside the number it belongs to."""

from markupsafe import Markup

from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.wording import Number


def interval_figure(
    value: Number | None,
    low: Number | None,
    high: Number | None,
    *,
    span: tuple[Number, Number],
    origin: Number,
) -> Markup:
    """A dot with its interval on a shared scale.

    It only repeats numbers that stand beside it, so it is hidden from screen readers.
    """
    if value is None:
        return Markup("")
    x = svg.Scale(*span, 4, 92)
    marks = [
        svg.rule(x.start, 8, x.stop, 8, "track"),
        svg.rule(x.at(origin), 1, x.at(origin), 15, "origin"),
    ]
    if low is not None and high is not None:
        marks.append(svg.rule(x.at(low), 8, x.at(high), 8, "whisker"))
    marks.append(svg.dot(x.at(value), 8, "dot", 2.6))
    return Markup(
        '<svg class="interval" viewBox="0 0 96 16" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(marks))
