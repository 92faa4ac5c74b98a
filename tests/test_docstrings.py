"""Examples in docstrings: every public name of the research API has one that runs."""

import doctest
import inspect
import sys

import pytest

import lt_mia_jax
from lt_mia_jax.features import statistics_file
from lt_mia_jax.unlearning.objectives import OBJECTIVES
from lt_mia_jax.unlearning.transforms import TRANSFORMS

ROOT = {name: getattr(lt_mia_jax, name) for name in lt_mia_jax.__all__}
PUBLIC = {
    **{name: value for name, value in ROOT.items() if callable(value)},
    "audit": lt_mia_jax.audit.audit,  # the root's is a package that can be called
    "TextRow": statistics_file.TextRow,
    "read_statistics": statistics_file.read_statistics,
    **{f"objectives.{name}": value for name, value in OBJECTIVES.items()},
    **{f"transforms.{name}": row.make for name, row in TRANSFORMS.items()},
}


def examples(name: str) -> doctest.DocTest:
    """The examples of one docstring, which see the names of their module."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    known = dict(vars(sys.modules[PUBLIC[name].__module__]))
    return doctest.DocTestParser().get_doctest(text, known, name, None, 0)


def failures(test: doctest.DocTest) -> list[str]:
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_example_of_a_docstring_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = examples(name)
    assert test.examples, f"the docstring of {name} has no example"
    assert not failures(test)


def test_a_wrong_example_is_seen():
    text = ">>> 1 + 1\n3\n"
    test = doctest.DocTestParser().get_doctest(text, {}, "wrong", None, 0)
    assert "Expected:" in "".join(failures(test))
