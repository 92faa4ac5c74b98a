"""Examples in docstrings: every public name of the research API has one that runs."""

import doctest
import inspect

import pytest

import lt_mia_jax
from lt_mia_jax.unlearning import objectives, transforms

ROOM = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (lt_mia_jax, objectives, transforms)
    for name in package.__all__
}
PUBLIC = {name: value for name, value in ROOM.items() if callable(value)}


def examples(name: str) -> doctest.DocTest:
    """The examples of one docstring; they share nothing with other docstrings."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


def failures(test: doctest.DocTest) -> list[str]:
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said


MISSING = sorted(name for name in PUBLIC if not examples(name).examples)
"""Without an example so far."""


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - set(MISSING)))
def test_the_example_of_a_docstring_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not failures(examples(name))


def test_every_name_of_the_root_has_an_example():
    assert not [name for name in MISSING if name.count(".") == 1]


def test_a_wrong_example_is_seen():
    text = ">>> 1 + 1\n3\n"
    test = doctest.DocTestParser().get_doctest(text, {}, "wrong", None, 0)
    assert "Expected:" in "".join(failures(test))
