"""Figures of compiled programs against programs counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.speed.compiled import describe
from experiments.speed.hlo import Program
from lt_mia_jax.sharding import make_mesh


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def repeated_product(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def test_a_product_in_a_loop_counts_every_time():
    x, kernels = jnp.ones((8, 64)), jnp.ones((7, 64, 64))
    found = describe(compiled(repeated_product, x, kernels))
    product = 2 * 8 * 64 * 64
    assert found.products == 7 * product
    assert found.flops == pytest.approx(7 * product, rel=0.01)
    assert found.flops_loops_once == pytest.approx(product, rel=0.01)
    assert found.unbounded_loops == 0
    # Each kernel is read once; copying it out of the stack is a read and a write more.
    assert kernels.nbytes <= found.bytes_accessed <= 4 * kernels.nbytes
    assert found.arguments == x.nbytes + kernels.nbytes
    assert found.outputs == x.nbytes


def test_a_batch_of_products():
    found = describe(compiled(jnp.matmul, jnp.ones((3, 16, 32)), jnp.ones((3, 32, 8))))
    assert found.products == 2 * 3 * 16 * 32 * 8


def test_loops_in_loops_multiply():
    def outer(x, kernels):
        return jax.lax.fori_loop(0, 5, lambda _, x: repeated_product(x, kernels), x)

    found = describe(compiled(outer, jnp.ones((8, 64)), jnp.ones((7, 64, 64))))
    assert found.flops == pytest.approx(5 * 7 * 2 * 8 * 64 * 64, rel=0.01)


def test_a_loop_without_a_known_end_counts_once_and_is_reported():
    def grow(x):
        return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ x, x)

    found = describe(compiled(grow, jnp.ones((64, 64))))
    assert found.unbounded_loops == 1
    assert found.flops == pytest.approx(2 * 64**3, rel=0.05)


def test_of_branches_the_dearest_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    found = describe(compiled(either, jnp.ones((64, 64))))
    assert found.flops == pytest.approx(2 * 2 * 64**3, rel=0.01)


def arithmetic(x):
    return jnp.where(x > 0, x * x + 1, -x).sum(axis=1)


def convolution(x):
    kernel = jnp.ones((4, 4, 3, 3))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID")


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (arithmetic, (64, 128)),
        (convolution, (2, 4, 8, 8)),
        (partial(jnp.einsum, "abc,dbc->ad", jnp.ones((3, 4, 5))), (6, 4, 5)),
        (jnp.cumsum, (512,)),
    ],
)
def test_without_loops_the_count_is_the_compilers(function, shape):
    program = compiled(function, jnp.ones(shape))
    own, found = program.cost_analysis(), describe(program)
    assert found.flops == pytest.approx(own["flops"], rel=0.02)
    assert found.bytes_accessed == pytest.approx(own["bytes accessed"], rel=0.1)


@pytest.mark.parametrize("layers", [1, 3])
def test_collectives_are_counted_in_the_text_and_as_they_run(layers):
    mesh = make_mesh(fsdp=4)

    def local(x):
        def layer(x, _):
            y = jax.lax.all_gather(x, "fsdp", tiled=True)
            return jax.lax.psum(x * y.sum(), "fsdp"), None

        x = jax.lax.scan(layer, x, length=layers)[0]
        return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    run = jax.shard_map(
        local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )
    found = describe(compiled(run, jnp.ones((8, 4))))
    permute = {"collective-permute": 1}
    assert found.collectives == {"all-gather": 1, "all-reduce": 1} | permute
    assert found.collectives_run == (
        {"all-gather": layers, "all-reduce": layers} | permute
    )


SHARDED = P("fsdp")


def one_collective(kind, x):
    match kind:
        case "all-gather":
            return jax.lax.all_gather(x, "fsdp", tiled=True)
        case "all-reduce":
            return jax.lax.psum(x, "fsdp")
        case "reduce-scatter":
            return jax.lax.psum_scatter(x, "fsdp", tiled=True)
        case "all-to-all":
            return jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
    return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        # Of the 256 bytes that each of four devices holds.
        ("all-gather", 3 * 256),
        ("all-reduce", 2 * 3 / 4 * 256),
        ("reduce-scatter", 3 / 4 * 256),
        ("all-to-all", 3 / 4 * 256),
        ("collective-permute", 256),
    ],
)
def test_a_collective_sends_its_share_and_reads_and_writes_memory(kind, sent):
    run = jax.shard_map(
        partial(one_collective, kind),
        mesh=make_mesh(fsdp=4),
        in_specs=SHARDED,
        out_specs=P() if kind == "all-gather" else SHARDED,
        check_vma=False,
    )
    program = compiled(run, jnp.ones((64, 4)))
    found = describe(program)
    assert found.collectives == found.collectives_run == {kind: 1}
    assert found.sent == {kind: sent}
    own = program.cost_analysis()["bytes accessed"]
    assert found.bytes_accessed == pytest.approx(own)


def test_weights_gathered_in_a_loop_are_sent_in_every_turn():
    place = partial(jax.NamedSharding, make_mesh(fsdp=4))
    kernels = jax.ShapeDtypeStruct(
        (6, 64, 64), jnp.float32, sharding=place(P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=place(SHARDED))

    def layers(kernels, x):
        def layer(x, kernel):
            return x @ jax.lax.with_sharding_constraint(kernel, place(P())), None

        return jax.lax.scan(layer, x, kernels)[0]

    found = describe(compiled(layers, kernels, x))
    assert found.collectives == {"all-gather": 1}
    assert found.collectives_run == {"all-gather": 6}
    assert found.sent == {"all-gather": 6 * 64 * 64 * 4 * 3 / 4}


GEMM = """HloModule gemm

ENTRY %main (a: bf16[4,32,64], b: bf16[4,64,16]) -> bf16[4,32,16] {
  %a = bf16[4,32,64]{2,1,0:T(8,128)} parameter(0)
  %b = bf16[4,64,16]{2,1,0} parameter(1)
  %gather = (bf16[4,64,16]{2,1,0}, bf16[4,64,16]{2,1,0}) all-gather-start(%b), \
dimensions={0}
  %done = bf16[4,64,16]{2,1,0} all-gather-done(%gather)
  %gemm = (bf16[4,32,16]{2,1,0}, s8[1024]{0}) custom-call(%a, %done), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}
  ROOT %out = bf16[4,32,16]{2,1,0} get-tuple-element(%gemm), index=0
}
"""


def test_library_products_and_asynchronous_collectives_of_accelerators():
    program = Program(GEMM)
    assert program.cost()["products"] == 2 * 4 * 32 * 64 * 16
    assert program.collectives == {"all-gather": 1}


def test_a_missing_figure_of_the_compiler_is_none():
    class Silent:
        def __init__(self, program):
            self.as_text = program.as_text
            self.memory_analysis = program.memory_analysis

        def cost_analysis(self):
            return None

    found = describe(Silent(compiled(jnp.sin, np.ones(3, np.float32))))
    assert found.flops_loops_once is None
    assert found.flops == 3
