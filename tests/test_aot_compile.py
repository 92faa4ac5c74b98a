"""Steps compiled for a TPU slice that is not there, and costs read from programs."""

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
from jax.sharding import PartitionSpec as P

from lt_mia_jax.models import ExecutionConfig
from lt_mia_jax.sharding import make_mesh, traced_for_cpu

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"

COMPILE = """
import json
from aot_compile import Compile, described_mesh, lower
from program_cost import describe

found = []
for layers in (2, 6):
    program = Compile(model="124m-gpt2", layers=layers, batch_size=32)
    mesh = described_mesh(program.topology, program.data, program.fsdp)
    cost = describe(lower(program, mesh).compile())
    found.append([cost.memory, cost.written, cost.messages])
print(json.dumps(found))
"""


@pytest.fixture
def describe(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from program_cost import describe

    return describe


def test_loops_are_multiplied(describe):
    def layers(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)

    kernels = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    cost = describe(jax.jit(layers).lower(kernels, x).compile())
    assert cost.flops == 5 * 2 * 16 * 32 * 32
    assert cost.collectives == {}
    assert cost.bytes >= 5 * 32 * 32 * 4


def test_batched_products(describe):
    x = jax.ShapeDtypeStruct((3, 16, 32), jnp.float32)
    y = jax.ShapeDtypeStruct((3, 32, 8), jnp.float32)
    cost = describe(jax.jit(jnp.matmul).lower(x, y).compile())
    assert cost.flops == pytest.approx(2 * 3 * 16 * 32 * 8)


def test_collectives_are_counted(describe):
    mesh = make_mesh(data=1, fsdp=4)
    kernels = jax.ShapeDtypeStruct(
        (6, 64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct(
        (8, 64), jnp.float32, sharding=jax.NamedSharding(mesh, P("fsdp"))
    )

    def layers(kernels, x):
        def layer(x, kernel):
            whole = jax.lax.with_sharding_constraint(
                kernel, jax.NamedSharding(mesh, P())
            )
            return x @ whole, None

        return jax.lax.scan(layer, x, kernels)[0]

    cost = describe(jax.jit(layers).lower(kernels, x).compile())
    assert cost.written == 1
    assert cost.collectives == {"all-gather": (6, 6 * 64 * 64 * 4 * 3 / 4)}


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
            "PYTHONPATH": f"{EXPERIMENTS}{os.pathsep}{ROOT}",
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
