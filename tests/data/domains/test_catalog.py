import re

import pytest

from lt_mia_jax.data.domains import DOMAINS, Domain
from lt_mia_jax.data.domains.windows import FEWEST_WORDS


def made_domain(units, cut):
    return Domain(
        name="made",
        role="train",
        about="",
        units=lambda: iter(units),
        cut=cut,
        packages=("python", "unicode", "numpy"),
    )


def test_catalog():
    assert {name: domain.role for name, domain in DOMAINS.items()} == {
        "py_code": "train",
        "sci_docs": "train",
        "cpp_headers": "train",
        "speeches": "train",
        "ml_docs": "held-out",
        "ref_prose": "held-out",
        "ml_code": "held-out",
        "ucd_table": "tables",
    }
    assert all(name == domain.name for name, domain in DOMAINS.items())


def test_cuts():
    numbers = " ".join(map(str, range(300)))
    units = [numbers, "too short", numbers]
    first = made_domain(units, "head").documents()
    assert [len(text.split()) for text in first] == [144]
    parts = made_domain(units, "windows").documents()
    assert [len(text.split()) for text in parts] == [112, 112, 300 - 224]
    assert made_domain(units, "whole").documents() == units[:2]


def test_versions():
    import numpy as np

    versions = made_domain([], "head").versions()
    assert versions["numpy"] == np.__version__
    assert set(versions) == {"python", "unicode", "numpy"}


@pytest.mark.slow
def test_functions_of_the_standard_library():
    documents = DOMAINS["py_code"].documents()
    assert len(documents) == len(set(documents)) > 1_000
    words = [len(re.findall(r"\w+|[^\w\s]", text)) for text in documents]
    # Long runs of letters count several times, so a few have fewer words than that.
    assert sum(count >= FEWEST_WORDS for count in words) > 0.9 * len(words)
    openings = ("def ", "async def ", "@")
    assert sum(text.startswith(openings) for text in documents) > 0.9 * len(documents)
