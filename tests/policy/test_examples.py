"""The examples in docstrings of `lt_mia_jax.policy` run as they are printed."""

import doctest
import importlib
import pkgutil

import pytest

from lt_mia_jax import policy

MODULES = [
    found.name
    for found in pkgutil.walk_packages(policy.__path__, "lt_mia_jax.policy.")
    if not found.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(name)
    ):
        runner.run(test, out=said.append)
    assert not "".join(said)
