"""The page `docs/survival.md`: paragraphs from a template, numbers from files."""

import functools
import re
from pathlib import Path
from typing import Any

from experiments.survival import tables
from experiments.survival.config import CORPORA, STRENGTHS, Study

TEMPLATE = Path(__file__).with_name("page.md.j2")
PAGE, FIGURE = "survival.md", "survival.svg"


def page(out: Path) -> str:
    """The page on what is finished in a folder."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    found, outcomes = tables.found_in(out), tables.outcomes_in(out)
    values: dict[str, Any] = {
        "study": Study(),
        "corpora": CORPORA,
        "strengths": STRENGTHS,
        "figure": FIGURE,
        "operations": tables.operations_table(),
        "survival": {
            strength: tables.survival_table(found, strength) for strength in STRENGTHS
        },
        "auc": functools.partial(tables.quoted, found, "auc"),
        "tpr": functools.partial(tables.quoted, found, "tpr"),
        "loss": functools.partial(tables.quoted, found, "loss"),
        "by_strength": tables.strengths_table(found),
        "controls": tables.controls(found),
        "demonstrations": tables.demonstrations_table(outcomes),
    }
    text = environment.from_string(TEMPLATE.read_text("utf-8")).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_page(out: Path, docs: Path | None) -> str:
    """The page; with a folder of documentation also written there, with its figure."""
    text = page(out)
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        (docs / PAGE).write_text(text, encoding="utf-8")
        found = tables.found_in(out)
        if found:
            tables.draw(found, docs / FIGURE)
    return text
