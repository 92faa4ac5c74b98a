from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_unlearning as oracle
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from objective_zoo import CASES, T, V, assert_same, device_case, value_and_gradient

from lt_mia_jax.unlearning.objectives.batch import TextBatch, shifted

blocked = pytest.mark.parametrize(
    "case",
    [c for c in CASES.values() if c.blocks],
    ids=[n for n, c in CASES.items() if c.blocks],
)


@blocked
@pytest.mark.parametrize("block", [1, 3])
def test_results_do_not_depend_on_the_block(case, block):
    params, batch = device_case()
    whole = value_and_gradient(case, params, batch, block=T)
    assert_same(value_and_gradient(case, params, batch, block=block), whole)


@blocked
def test_a_block_without_steps_is_refused(case):
    with pytest.raises(ValueError, match="block is 0"):
        case(*device_case(), block=0)


@blocked
def test_tangents_of_per_example_equal_gradients(case):
    # Attribution scores texts by one forward-mode pass.
    params, batch = device_case()
    terms = lambda p: case(p, batch, block=3)[1].per_example  # noqa: E731
    direction = jax.tree.map(lambda x: jnp.sin(x * 7), params)
    _, tangent = jax.jvp(terms, (params,), (direction,))
    rows = jax.jacrev(terms)(params)["logits"]
    expected = np.einsum("nbtv,btv->n", rows, direction["logits"])
    np.testing.assert_allclose(tangent, expected, rtol=1e-5, atol=1e-6)


@blocked
def test_sharded_texts_are_not_gathered(case):
    params, batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), device_case())
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(partial(value_and_gradient, case, block=3), in_shardings=rows)
    expected = value_and_gradient(case, params, batch)
    program = step.lower(params, batch).compile()
    assert "all-reduce" in program.as_text()
    assert "all-gather" not in program.as_text()
    assert_same(step(params, batch), expected, rtol=1e-5)


@blocked
def test_blocks_need_less_memory(case):
    def apply_fn(params, input_ids):
        return params["stream"] @ params["head"]

    def step(params, batch, block):
        settings = {"reference_params": params["reference"]} if case.reference else {}
        call = partial(case.call, apply_fn=apply_fn, block=block, **settings)
        return jax.value_and_grad(call, has_aux=True)(params, batch)

    params = {"stream": jnp.zeros((4, 64, 8)), "head": jnp.zeros((8, 4096))}
    ones = jnp.ones((4, 64), jnp.uint8)
    batch = TextBatch(ones.astype(jnp.int32), ones, ones, jnp.ones(4))
    whole, blocks = (
        jax.jit(partial(step, block=block))
        .lower({**params, "reference": params}, batch)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for block in (64, 4)
    )
    assert blocks < 0.9 * whole


def test_ce_u_moves_logits_as_its_paper_says():
    params, batch = device_case()
    (_, info), gradient = value_and_gradient(CASES["ce_u-0"], params, batch)
    found = np.asarray(gradient["logits"]) * float(info.normalizer)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-6)
    for b, row in enumerate(oracle.predictions(batch)):
        for t, y in row:
            p = oracle.softmax(params["logits"][b, t])
            expected = -p * p[y] / (1 - p[y])
            expected[y] = p[y]
            np.testing.assert_allclose(
                found[b, t], batch.weight[b] * expected, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("name", ["kl", "undial", "ce_u", "pdu_flatten"])
def test_masked_entries_change_nothing(name):
    """A vocabulary padded by entries of logit -inf is the vocabulary without them."""
    params, batch = device_case()
    padding = ((0, 0), (0, 0), (0, 3))

    def padded(x):
        return jnp.pad(x, padding, constant_values=-jnp.inf)

    old = {"logits": padded(params["reference"]["logits"])}
    wide = {"logits": padded(params["logits"]), "reference": old}
    (value, _), gradient = value_and_gradient(CASES[name], params, batch)
    (found, _), found_gradient = value_and_gradient(CASES[name], wide, batch)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    expected = jnp.pad(gradient["logits"], padding)
    np.testing.assert_allclose(found_gradient["logits"], expected, rtol=1e-5, atol=1e-7)


def test_flattening_ignores_a_constant_and_ends_at_uniform():
    params, batch = device_case()
    value, _ = CASES["pdu_flatten"](params, batch)
    moved = {**params, "logits": params["logits"] + 3.0}
    np.testing.assert_allclose(CASES["pdu_flatten"](moved, batch)[0], value, rtol=1e-5)
    level = {**params, "logits": jnp.full_like(params["logits"], 0.5)}
    assert float(CASES["pdu_flatten"](level, batch)[0]) == 0


def test_distillation_ends_at_the_reference():
    params, batch = device_case()
    at_home = {**params, "logits": params["reference"]["logits"]}
    (value, _), gradient = value_and_gradient(CASES["kl"], at_home, batch)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient["logits"], 0, atol=1e-6)
    # UNDIAL ends where the logits of the targets are lower by beta.
    ids, _ = shifted(batch)
    drop = 10.0 * jax.nn.one_hot(ids, V)
    lowered = {**params, "logits": params["reference"]["logits"] - drop}
    _, gradient = value_and_gradient(CASES["undial"], lowered, batch)
    np.testing.assert_allclose(gradient["logits"], 0, atol=1e-6)
