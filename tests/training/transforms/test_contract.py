"""What all transformations owe their callers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat
from quick_compile import jit, run
from transform_cases import (
    CASES,
    DTYPES,
    SPECS,
    active_case,
    assert_same,
    compiled,
    compiled_inner,
    every_case,
    run_active,
    sines,
    tree,
)

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.training import Checkpointer
from lt_mia_jax.training.transforms.contract import transformation
from lt_mia_jax.unlearning import transforms
from lt_mia_jax.unlearning.transforms import (
    TRANSFORMS,
    combine_forget_retain,
    ema_teacher,
    freeze,
    monitored,
    project_against,
)


@every_case
def test_the_neutral_setting_changes_nothing(name):
    case, params = CASES[name], tree(0)
    tx, (inner, plain) = case.neutral(params), compiled_inner(case.inner)
    update, state, other = jit(tx.update), tx.init(params), inner.init(params)
    for seed in range(3):
        g = tree(1 + seed)
        extras = case.extras(seed, params, gradient=g)
        if name == "sharpness_aware":
            g = sines(params)
        u, state = update(g, state, params, **extras)
        expected, other = plain(g, other, params)
        if case.inner is optax.identity or name.startswith("project_realized"):
            assert_same(u, expected)
        else:
            # Two programs may round the same optimizer differently.
            assert_same(u, expected, rtol=1e-5, atol=1e-7)


@every_case
def test_the_active_setting_changes_something(name):
    updates, _ = run_active(name)
    params, (inner, plain) = tree(0, dtypes=DTYPES), compiled_inner(CASES[name].inner)
    expected, _ = plain(tree(1, dtypes=DTYPES), inner.init(params), params)
    different = np.abs(flat(updates[0]) - flat(expected)).max() > 1e-3
    # A teacher only looks on.
    assert different == (name != "ema_teacher")


@every_case
def test_sharded_gradients_give_sharded_updates_by_one_program(name):
    case, mesh = active_case(name), make_mesh(1, 4)
    front = () if case.stack is None else (None,)
    place, place_stack = (
        jax.tree.map(
            lambda s, axes=axes: NamedSharding(mesh, P(*axes, *s)),
            SPECS,
            is_leaf=lambda s: isinstance(s, P),
        )
        for axes in ((), front)
    )
    everywhere = NamedSharding(mesh, P())
    params = jax.device_put(tree(0, dtypes=DTYPES), place)
    tx = case.active(tree(0, dtypes=DTYPES))
    state = tx.init(params)
    # What mirrors the parameters lies where they lie from the start.
    like = {tuple(x.shape): x.sharding for x in jax.tree.leaves(params)}
    for leaf in jax.tree.leaves(state):
        if leaf.shape in like:
            assert leaf.sharding.is_equivalent_to(like[leaf.shape], leaf.ndim)
    state = jax.tree.map(
        lambda x: (
            x if len(x.sharding.device_set) == 4 else jax.device_put(x, everywhere)
        ),
        state,
    )
    layout = jax.tree.map(lambda x: x.sharding, state)

    @jit
    def update(g, state, params, extras):
        u, state = tx.update(g, state, params, **extras)
        moved = optax.apply_updates(params, u)
        return u, moved, jax.lax.with_sharding_constraint(state, layout)

    def inputs(seed):
        g, extras = tree(1 + seed, dtypes=DTYPES), case.extras(seed, params)
        for key in ("retain_grads", "second_moment"):
            if key in extras:
                extras[key] = jax.device_put(extras[key], place_stack)
        return jax.device_put(g, place), extras

    program = update.lower(inputs(0)[0], state, params, inputs(0)[1]).compile()
    # Numbers are added up over devices; no leaf is brought together or moved.
    moves = re.findall("all-gather|all-to-all|collective-permute", program.as_text())
    assert not moves
    expected, _ = run_active(name)
    for seed in range(3):
        # A compiled program refuses anything that would need another one.
        g, extras = inputs(seed)
        u, moved, state = program(g, state, params, extras)
        assert_same(u, expected[seed], rtol=1e-5, atol=1e-5)
        if name == "freeze":
            # A constant, so that no gradient is computed for it; it lies where its
            # parameter does once it is added.
            u["a"] = moved["a"]
        for x, y in zip(jax.tree.leaves(u), jax.tree.leaves(g), strict=True):
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@every_case
def test_unknown_arguments_are_ignored_and_missing_ones_named(name):
    case, params = active_case(name), tree(0, dtypes=DTYPES)
    (tx, _), g, extras = compiled(name), tree(1, dtypes=DTYPES), case.extras(0, params)
    state = tx.init(params)

    def program(params=params, **extras):
        return jax.make_jaxpr(tx.update)(g, state, params, **extras)

    with_nonsense = program(**extras, nonsense=jnp.ones(3))
    assert with_nonsense.eqns
    assert str(with_nonsense.eqns) == str(program(**extras).eqns)
    for missing in case.needs:
        if missing == "params":
            # Optax's own optimizers say it in their own words.
            with pytest.raises(ValueError, match="param"):
                program(None, **extras)
            continue
        with pytest.raises(ValueError, match=missing):
            program(**{k: v for k, v in extras.items() if k != missing})


@every_case
def test_the_state_survives_a_trip_through_numpy(name):
    case, params = active_case(name), tree(0, dtypes=DTYPES)
    (_, update), (expected, states) = compiled(name), run_active(name)
    leaves, structure = jax.tree.flatten(states[1])
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    kept = [np.array(leaf) for leaf in leaves]
    restored = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in kept])
    u, after = update(
        tree(3, dtypes=DTYPES), restored, params, **case.extras(2, params)
    )
    assert_same(u, expected[2])
    assert_same(after, states[2])


def test_states_survive_a_checkpoint(tmp_path):
    states = {name.replace(" ", "_"): run_active(name)[1][-1] for name in CASES}
    with Checkpointer(tmp_path / "state") as checkpointer:
        checkpointer.save(1, states, {})
    fresh = {
        name.replace(" ", "_"): active_case(name)
        .active(tree(0, dtypes=DTYPES))
        .init(tree(0, dtypes=DTYPES))
        for name in CASES
    }
    with Checkpointer(tmp_path / "state") as checkpointer:
        restored = checkpointer.restore(fresh)
    assert_same(restored.tree, states)


@every_case
def test_the_arrays_given_outlive_a_consumed_state(name):
    params = tree(0)
    tx = active_case(name).active(params)
    state = tx.init(params)
    jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(state)
    assert np.isfinite(flat(params)).all()


def test_monitored_numbers_are_collected_by_name():
    params = tree(0)
    tx = optax.chain(
        project_against(),
        freeze(optax.chain(project_against(), combine_forget_retain()), ["b/*"]),
        ema_teacher(0.9),
    )
    _, state = run(tx, tree(1), tx.init(params), params, retain_grads=tree(2))
    numbers = monitored(state)
    assert set(numbers) == {
        "project_against_cosine",
        "project_against_coefficient",
        "project_against_cosine_2",
        "project_against_coefficient_2",
        "combine_forget_norm",
        "combine_retain_norm",
        "combine_cosine",
    }
    assert all(x.dtype == jnp.float32 and x.shape == () for x in numbers.values())
    np.testing.assert_allclose(
        numbers["combine_retain_norm"], np.linalg.norm(flat(tree(2)["b"])), rtol=1e-5
    )
    assert numbers["project_against_cosine"] != numbers["project_against_cosine_2"]


def test_every_transformation_is_here():
    assert {name.split()[0] for name in CASES} == set(TRANSFORMS)
    for name, row in TRANSFORMS.items():
        assert getattr(transforms, name) is row.make
        assert row.meaning.endswith((".", ":")), name
        assert row.source or name in ("freeze",)


def test_a_new_transformation_takes_one_place():
    """Its function with the decorator; beside it only a case in `transform_cases`."""

    @transformation("retain_grads")
    def halved(factor: float = 0.5) -> optax.GradientTransformationExtraArgs:
        """Scale the gradient. Source: nobody."""

        def update(updates, state, params=None, *, retain_grads=None, **extra):
            return jax.tree.map(lambda g: factor * g, updates), state

        return optax.GradientTransformationExtraArgs(
            lambda p: optax.EmptyState(), update
        )

    try:
        row = TRANSFORMS["halved"]
        assert (row.needs, row.source) == (("retain_grads",), "nobody.")
        tx = transforms.halved()
        found, _ = tx.update(tree(1), tx.init(tree(1)), retain_grads=tree(2))
        assert_same(found, jax.tree.map(lambda g: 0.5 * g, tree(1)))
        with pytest.raises(ValueError, match="halved needs retain_grads"):
            tx.update(tree(1), tx.init(tree(1)))
    finally:
        del TRANSFORMS["halved"]
