"""Projections of gradients against retain gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat, flat_rows, without_span
from quick_compile import jit, run
from small_trees import tree

from lt_mia_jax.training.transforms.products import dot as tree_dot
from lt_mia_jax.training.transforms.products import gram, solve
from lt_mia_jax.unlearning.transforms import (
    monitored,
    project_against,
    project_realized_update,
    retain_subspace_projection,
)


def test_dot_is_that_of_the_flat_vectors():
    a, b = tree(0), tree(1)
    np.testing.assert_allclose(tree_dot(a, b), flat(a) @ flat(b), rtol=1e-5)
    k = gram(tree(2, 3), jax.tree.map(jnp.abs, a))
    rows = flat_rows(tree(2, 3))
    np.testing.assert_allclose(k, rows * np.abs(flat(a)) @ rows.T, rtol=1e-5, atol=1e-4)


def test_half_precision_products_are_added_in_float32():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.uniform(size=2**16), jnp.bfloat16)
    exact = float(np.asarray(values, np.float64) @ np.asarray(values, np.float64))
    # Not compiled: a compiler may round less than the program says.
    found = tree_dot({"x": values}, {"x": values})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    # The product rounded to bfloat16 first would miss by more than that.
    rounded = float(jnp.sum((values * values).astype(jnp.float32)))
    assert abs(rounded - exact) > 1e-4 * exact
    # And the projection uses it: what is left is orthogonal as far as bfloat16 goes.
    other = jnp.asarray(rng.uniform(size=2**16), jnp.bfloat16)
    tx = project_against()
    u, state = tx.update({"x": values}, tx.init(None), retain_grads={"x": other})
    assert u["x"].dtype == jnp.bfloat16
    x, y = np.asarray(values, np.float64), np.asarray(other, np.float64)
    numbers = monitored(state)
    np.testing.assert_allclose(
        numbers["project_against_coefficient"], x @ y / (y @ y), rtol=1e-5
    )
    np.testing.assert_allclose(
        numbers["project_against_cosine"],
        x @ y / np.sqrt((x @ x) * (y @ y)),
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2), ("data", "fsdp"))


SPECS = {"a": P("fsdp"), "b": {"c": P(), "d": P(None, ("data", "fsdp"))}}


def test_dot_of_sharded_trees(mesh):
    a, b = tree(3), tree(4)
    whole = float(tree_dot(a, b))
    place = jax.tree.map(
        lambda s: NamedSharding(mesh, s), SPECS, is_leaf=lambda s: isinstance(s, P)
    )
    sharded = jax.device_put((a, b), (place, place))
    np.testing.assert_allclose(jit(tree_dot)(*sharded), whole, rtol=1e-6)

    def local(a, b):
        return tree_dot(a, b, partition_specs=SPECS)

    inside = jax.shard_map(local, mesh=mesh, in_specs=(SPECS, SPECS), out_specs=P())
    np.testing.assert_allclose(jit(inside)(*sharded), whole, rtol=1e-6)

    # Adding every leaf over every axis counts replicated ones again.
    def naive(a, b):
        return jax.lax.psum(tree_dot(a, b), ("data", "fsdp"))

    wrong = jax.shard_map(
        naive, mesh=mesh, in_specs=(SPECS, SPECS), out_specs=P(), check_vma=False
    )
    assert abs(float(jit(wrong)(*sharded)) - whole) > 1e-3 * abs(whole)


def test_projection_against_one_gradient():
    g, r = tree(0), tree(1)
    tx = project_against()
    u, state = run(tx, g, tx.init(g), retain_grads=r)
    c = flat(g) @ flat(r) / (flat(r) @ flat(r))
    np.testing.assert_allclose(flat(u), flat(g) - c * flat(r), atol=1e-6)
    assert abs(flat(u) @ flat(r)) < 1e-5 * np.linalg.norm(flat(r)) ** 2
    again, _ = run(tx, u, state, retain_grads=r)
    np.testing.assert_allclose(flat(again), flat(u), atol=1e-6)
    numbers = monitored(state)
    np.testing.assert_allclose(numbers["project_against_coefficient"], c, rtol=1e-5)


def test_projection_by_conflict():
    g, r = tree(0), tree(1)
    sign = np.sign(flat(g) @ flat(r))
    agreeing = jax.tree.map(lambda x: sign * x, r)
    opposed = jax.tree.map(lambda x: -sign * x, r)
    tx = project_against(when="conflict")
    u, state = run(tx, g, tx.init(g), retain_grads=agreeing)
    np.testing.assert_array_equal(flat(u), flat(g))
    assert monitored(state)["project_against_cosine"] > 0
    u, state = run(tx, g, tx.init(g), retain_grads=opposed)
    assert abs(flat(u) @ flat(r)) < 1e-5 * np.linalg.norm(flat(r)) ** 2
    assert monitored(state)["project_against_coefficient"] < 0


def test_projection_by_parts():
    g, r = tree(0), tree(1)
    leaf, _ = run(project_against(scope="leaf"), g, None, retain_grads=r)
    for x, y in zip(jax.tree.leaves(leaf), jax.tree.leaves(r), strict=True):
        assert abs(flat(x) @ flat(y)) < 1e-5 * (flat(y) @ flat(y))
    tx = project_against(scope="label", labels=lambda path: path.split("/")[0])
    label, _ = run(tx, g, None, retain_grads=r)
    for name in ("a", "b"):
        whole, _ = run(project_against(), g[name], None, retain_grads=r[name])
        np.testing.assert_allclose(flat(label[name]), flat(whole), atol=1e-6)
    assert np.abs(flat(leaf) - flat(label)).max() > 1e-3
    with pytest.raises(ValueError, match="needs labels"):
        project_against(scope="label")
    with pytest.raises(ValueError, match="needs labels"):
        project_against(labels=str)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-4])
@pytest.mark.parametrize("size", [1, 2])
def test_a_retain_gradient_of_rounding_changes_nothing(size, scale):
    g = tree(0)
    # One of 1e-4 is no rounding, and is projected off like any other.
    small = tree(5, scale=scale) if size == 1 else tree(5, size, scale=scale)
    chosen = [
        project_realized_update(optax.sgd(-1.0), size=size, form=form)
        for form in ("inequality", "equality")
    ]
    if size == 1:
        chosen += [project_against(), retain_subspace_projection(size=2)]
    if scale == 1e-4:
        chosen = chosen[1:]  # whether an inequality is active depends on the sign
    for tx in chosen:
        u, _ = run(tx, g, tx.init(g), retain_grads=small)
        assert (flat(u) == flat(g)).all() == (scale < 1e-4)


def run_subspace(tx, g, retains, **extra):
    state = tx.init(g)
    update = jit(tx.update)
    for retain in retains:
        u, state = update(g, state, retain_grads=retain, **extra)
    return u, state


def test_subspace_projection_is_orthogonal_to_every_gradient():
    g, retains = tree(0), [tree(seed) for seed in (1, 2, 3)]
    # Lengths that differ by 10^4: a damping relative to the longest would lose one.
    retains[1] = jax.tree.map(lambda x: 1e-4 * x, retains[1])
    u, state = run_subspace(retain_subspace_projection(size=4), g, retains)
    rows = np.stack([flat(r) for r in retains])
    expected = without_span(flat(g), rows, np.ones(rows.shape[1]))
    np.testing.assert_allclose(flat(u), expected, atol=2e-5)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(flat(u))
    assert (np.abs(rows @ flat(u)) < 1e-5 * norms).all()
    numbers = monitored(state)
    inside = 1 - (expected @ expected) / (flat(g) @ flat(g))
    np.testing.assert_allclose(
        numbers["retain_subspace_cosine"], np.sqrt(inside), rtol=1e-4
    )
    assert numbers["retain_subspace_size"] == 3


def test_subspace_projection_twice_is_once_and_leaves_orthogonal_gradients():
    g, r = tree(0), tree(1)
    tx = retain_subspace_projection(size=2)
    u, state = run_subspace(tx, g, [r])
    again, _ = run(tx, u, state, retain_grads=r)
    np.testing.assert_allclose(flat(again), flat(u), atol=1e-6)


def test_the_oldest_gradient_leaves_and_refresh_waits():
    g, retains = tree(0), [tree(seed) for seed in range(1, 6)]
    _, state = run_subspace(retain_subspace_projection(size=2), g, retains)
    rows = {tuple(row) for row in flat_rows(state.buffer)}
    assert rows == {tuple(flat(r)) for r in retains[-2:]}
    tx = retain_subspace_projection(size=4, refresh=2)
    _, state = run_subspace(tx, g, retains)
    found = flat_rows(state.buffer)
    np.testing.assert_array_equal(found[:3], [flat(r) for r in retains[::2]])
    assert not found[3].any()


def test_equal_gradients_are_harmless():
    g, r = tree(0), tree(1)
    u, _ = run_subspace(retain_subspace_projection(size=8), g, [r] * 8)
    c = flat(g) @ flat(r) / (flat(r) @ flat(r))
    np.testing.assert_allclose(flat(u), flat(g) - c * flat(r), atol=1e-5)


def test_only_the_optimizers_metric_keeps_the_preconditioned_step_orthogonal():
    g, retains = tree(0), [tree(1), tree(2)]
    v = jax.tree.map(lambda x: 10.0 ** (2 * x), tree(3))
    p = 1 / (np.sqrt(flat(v)) + 1e-8)
    rows = np.stack([flat(r) for r in retains])

    def worst(u):
        step = -1e-3 * p * flat(u)
        return (
            np.abs(rows @ step) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(step))
        ).max()

    adam = retain_subspace_projection(size=2, metric="adam")
    u, state = run_subspace(adam, g, retains, second_moment=v)
    np.testing.assert_allclose(flat(u), without_span(flat(g), rows, p), atol=3e-5)
    assert worst(u) < 1e-4
    plain, _ = run_subspace(retain_subspace_projection(size=2), g, retains)
    assert worst(plain) > 1e-2
    assert 0 < monitored(state)["retain_subspace_cosine"] < 1


def test_small_systems():
    rng = np.random.default_rng(0)
    for k in (1, 3, 8):
        rows = rng.normal(size=(k, 40))
        b = rows @ rng.normal(size=40)
        found = jit(solve, static_argnums=2)(
            jnp.float32(rows @ rows.T), jnp.float32(b), 1e-6
        )
        np.testing.assert_allclose(found, np.linalg.solve(rows @ rows.T, b), atol=1e-4)
