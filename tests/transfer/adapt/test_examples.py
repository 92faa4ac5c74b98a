"""The examples in the docstrings of the package."""

import doctest
import importlib
import pkgutil

import pytest

from lt_mia_jax.transfer import adapt

MODULES = [module.name for module in pkgutil.iter_modules(adapt.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    module = importlib.import_module(f"{adapt.__name__}.{name}")
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said
