import pytest
import tiny_world

from lt_mia_jax.audit import load_pair
from lt_mia_jax.executor import make_executor


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> tiny_world.World:
    return tiny_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def pair(world):
    return load_pair(str(world.base), str(world.target), make_executor())
