"""Pareto plots of the comparison page as a picture, for documents without HTML."""

from collections.abc import Mapping

from markupsafe import Markup

from lt_mia_jax.report.drawing import svg
from lt_mia_jax.report.drawing.landscape import CHARACTER, PARETO, Figure, symbol

LEFT, KEY, HEAD = 62, 34, 36
"""Where titles begin; heights of the key and of a title, in pixels."""


def picture(figures: Mapping[str, Figure], style: Markup) -> str:
    """An SVG document: the key, then each plot under its title.

    Args:
      figures: Pareto plots by title, with the same key.
      style: the page's CSS, whose colors follow the reader's light or dark screen.
    """
    width, height = PARETO
    marks, x = [], 20.0
    for css, text in next(iter(figures.values())).key:
        marks.append(symbol(x, 15, css.removeprefix("spot ")))
        marks.append(svg.text(x + 11, 19, text))
        x += 24 + 0.94 * CHARACTER * len(text)  # has to fit
    top = KEY
    for title, figure in figures.items():
        marks.append(svg.text(LEFT, top + 20, title, "title"))
        marks.append(
            Markup('<svg y="{}" width="{}" height="{}">{}</svg>').format(
                top + HEAD, width, height, figure.svg
            )
        )
        top += HEAD + height
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}">'
        "<style>{}</style>{}</svg>\n"
    ).format(width, top, style, Markup("").join(marks))
