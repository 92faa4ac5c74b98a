import pytest
from syntofu_rows import CONFIG

from lt_mia_jax.data.syntofu import (
    build,
)


@pytest.fixture(scope="module")
def splits():
    return build(CONFIG)
