"""The files of `page/`, and the pieces of HTML that panels are made of."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

environment = Environment(
    loader=PackageLoader("lt_mia_jax.report", "page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
show: Any = environment.get_template("fragments.html.j2").module
"""`show.table(...)` and the other macros of `fragments.html.j2`: records to HTML."""


def asset(name: str) -> Markup:
    """A file of this package that stands in pages as it is."""
    return Markup((files("lt_mia_jax.report") / name).read_text(encoding="utf-8"))
