import pytest
import tiny_world


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> tiny_world.World:
    return tiny_world.build(tmp_path_factory.mktemp("world"))
