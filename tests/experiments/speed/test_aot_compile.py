"""Steps compiled for a TPU slice that is not there."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lt_mia_jax.models import ExecutionConfig
from lt_mia_jax.sharding import make_mesh, traced_for_cpu

ROOT = Path(__file__).parents[3]

COMPILE = """
import json
from experiments.speed.aot_compile import Compile, described_mesh, lower
from experiments.speed.compiled import describe

found = []
for layers in (2, 6):
    program = Compile(model="124m-gpt2", layers=layers, batch_size=32)
    mesh = described_mesh(program.topology, program.data, program.fsdp)
    figures = describe(lower(program, mesh).compile())
    counts = figures.collectives, figures.collectives_run
    found.append([figures.peak, *(sum(kinds.values()) for kinds in counts)])
print(json.dumps(found))
"""


def test_the_mesh_in_context_names_the_platform():
    mesh = make_mesh().abstract_mesh
    kind = dataclasses.replace(mesh.abstract_device, device_kind="TPU v5 lite")
    assert traced_for_cpu()
    with jax.sharding.use_abstract_mesh(mesh):
        assert traced_for_cpu()
    with jax.sharding.use_abstract_mesh(mesh.update(abstract_device=kind)):
        assert not traced_for_cpu()
        assert ExecutionConfig().resolve_compute_dtype() == jnp.bfloat16
    assert ExecutionConfig().resolve_compute_dtype() == jnp.float32


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, which holds the compiler for TPUs (extra 'tpu')",
)
def test_compiles_for_v5e_16():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shallow, deep = json.loads(done.stdout.splitlines()[-1])
    assert max(shallow[0], deep[0]) < 16e9
    # The layers share one loop: deeper programs run it more often.
    assert deep[1] == shallow[1]
    assert shallow[2] < deep[2] <= 3 * shallow[2]
