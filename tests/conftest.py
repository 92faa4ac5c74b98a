"""Test-wide settings: simulated devices, strict shapes, no network.

Four devices, or LT_MIA_TEST_DEVICES of them.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = os.environ.get("LT_MIA_TEST_DEVICES", "4")
# Tests compile thousands of programs and run each a few times.
FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_backend_optimization_level=0"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Shared by the workers and all that they start: many files need the same programs.
    COMPILED = tempfile.mkdtemp(prefix="lt-mia-compiled-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

from jaxtyping import install_import_hook

# Every annotated function of the package checks its shapes while tests run.
install_import_hook("lt_mia_jax", "beartype.beartype")

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_do_not_pile_up():
    """Each keeps memory maps, and a process may have 65,530: XLA aborts beyond."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "golden"
