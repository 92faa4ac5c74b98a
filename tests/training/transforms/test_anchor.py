"""Anchors, teachers, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat
from quick_compile import jit
from transform_cases import DTYPES, assert_same, quadratic, some, tree

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.unlearning.transforms import (
    alternate,
    ascend,
    combine_forget_retain,
    ema_teacher,
    ewc_pull,
    freeze,
    monitored,
    sharpness_aware,
    stochastic_restore,
    trust_region,
)


def test_the_pull_is_the_gradient_of_the_penalty():
    params, anchor = tree(0), tree(1)
    fisher = jax.tree.map(jnp.square, tree(2))

    def penalty(p):
        return 1.5 * sum(
            jnp.sum(f * (x - a) ** 2)
            for f, x, a in zip(*map(jax.tree.leaves, (fisher, p, anchor)), strict=True)
        )

    tx = ewc_pull(3.0, anchor, fisher)
    g = tree(3)
    u, state = tx.update(g, tx.init(params), params)
    expected = flat(g) + flat(jax.grad(penalty)(params))
    np.testing.assert_allclose(flat(u), expected, rtol=1e-5, atol=1e-5)
    numbers = monitored(state)
    np.testing.assert_allclose(numbers["ewc_pull_penalty"], penalty(params), rtol=1e-5)
    np.testing.assert_allclose(
        numbers["ewc_pull_distance"],
        np.linalg.norm(flat(params) - flat(anchor)),
        rtol=1e-5,
    )


def test_a_step_is_shortened_to_the_radius():
    params, metric = tree(0), jax.tree.map(jnp.square, tree(1))
    u = tree(2)
    length = np.sqrt(flat(metric) @ flat(u) ** 2)
    for radius in (0.5 * length, 2.0 * length):
        tx = trust_region(radius, metric)
        v, state = tx.update(u, tx.init(params), params)
        factor = min(1.0, radius / length)
        np.testing.assert_allclose(flat(v), factor * flat(u), rtol=1e-5)
        np.testing.assert_allclose(
            monitored(state)["trust_region_norm"], length, rtol=1e-5
        )
    with pytest.raises(ValueError, match="radius"):
        trust_region(0.0)


def test_ascent_never_slows_down_but_a_region_holds_it():
    """Clipped ascent moves at full speed for ever; trap 8 of the specification."""
    start = tree(0)
    speed = 0.1
    free = optax.chain(ascend(), optax.clip_by_global_norm(1.0), optax.sgd(speed))
    held = optax.chain(free, trust_region(0.5, around="start"))

    def distances(tx):
        @jit
        def step(params, state):
            # The gradient of half the squared norm: ascent runs away.
            u, state = tx.update(params, state, params)
            return optax.apply_updates(params, u), state

        params, state, found = start, tx.init(start), []
        for _ in range(12):
            params, state = step(params, state)
            found.append(np.linalg.norm(flat(params) - flat(start)))
        return np.array(found)

    np.testing.assert_allclose(distances(free), speed * np.arange(1, 13), rtol=1e-3)
    np.testing.assert_allclose(
        distances(held), np.minimum(speed * np.arange(1, 13), 0.5), rtol=1e-3
    )


def test_the_teacher_is_the_running_mean_in_float32():
    params = tree(0, dtypes=jax.tree.map(lambda _: jnp.bfloat16, DTYPES))
    mask = some(tree(1))
    tx = optax.chain(optax.sgd(0.1), ema_teacher(0.75, mask))
    state = tx.init(params)
    expected = flat(params)
    moving = flat(mask).astype(bool)
    for seed in range(4):
        u, state = tx.update(tree(2 + seed), state, params)
        target = flat(params) + flat(u)
        expected = np.where(moving, 0.75 * expected + 0.25 * target, expected)
        params = optax.apply_updates(params, u)
    teacher = optax.tree.get(state, "teacher")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(teacher))
    np.testing.assert_allclose(flat(teacher), expected, rtol=1e-5, atol=1e-6)


def test_restored_weights_are_those_of_the_anchor():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)))}
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    anchor = jax.tree.map(jnp.zeros_like, params)
    tx = stochastic_restore(0.2, anchor, seed=5)
    u = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    state, back = tx.init(params), []
    for _ in range(2):
        v, state = tx.update(u, state, params)
        back.append(flat(v) != 0.5)
        moved = flat(optax.apply_updates(params, v))
        np.testing.assert_array_equal(moved[back[-1]], 0.0)
        # 4096 draws: five standard errors are 0.031.
        assert abs(back[-1].mean() - 0.2) < 0.031
    assert (back[0] != back[1]).any()
    # Another leaf beside it, or another layout, changes no draw.
    both = {"v": params["w"], "w": params["w"]}
    mesh = make_mesh(1, 4)
    both = jax.device_put(both, NamedSharding(mesh, P("fsdp")))
    tx = stochastic_restore(0.2, jax.tree.map(jnp.zeros_like, both), seed=5)
    v, _ = jit(tx.update)(
        jax.tree.map(lambda x: jnp.full_like(x, 0.5), both), tx.init(both), both
    )
    np.testing.assert_array_equal(flat(v["w"]) != 0.5, back[0])
    assert (flat(v["v"]) != flat(v["w"])).any()
    with pytest.raises(ValueError, match="probability"):
        stochastic_restore(1.5)


def test_every_nth_step_is_the_second_and_each_keeps_its_own_state():
    params = tree(0)
    tx = alternate(
        optax.chain(combine_forget_retain(0.0, 1.0), optax.trace(0.9)),
        optax.chain(ascend(), optax.trace(0.5)),
        every=3,
    )
    update, state = jit(tx.update), tx.init(params)
    first, second = 0.0, 0.0
    for step in range(7):
        g, r = tree(1 + step), tree(20 + step)
        u, state = update(g, state, params, retain_grads=r)
        if step % 3 == 2:
            expected = second = -flat(g) + 0.5 * second
        else:
            expected = first = flat(r) + 0.9 * first
        np.testing.assert_allclose(flat(u), expected, atol=1e-5)
    with pytest.raises(ValueError, match="every"):
        alternate(ascend(), ascend(), 0)


def test_two_compiled_steps_save_the_gradient_that_alternation_wastes():
    """`alternate` chooses after both gradients exist; a host that counts need not."""
    rng = np.random.default_rng(0)
    forget, retain = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    start = {"x": jnp.asarray(rng.normal(size=3), jnp.float32)}
    tx = optax.chain(
        alternate(combine_forget_retain(0, 1), combine_forget_retain(-1, 0), 3),
        optax.adam(0.1),
    )
    grad, update = jit(jax.grad(quadratic)), jit(tx.update)
    params, state = start, tx.init(start)
    optimizer = optax.adam(0.1)
    other, own, alone = start, optimizer.init(start), jit(optimizer.update)
    calls = {"forget": 0, "retain": 0}
    for step in range(6):
        u, state = update(
            grad(params, forget), state, params, retain_grads=grad(params, retain)
        )
        params = optax.apply_updates(params, u)
        if step % 3 == 2:
            calls["forget"] += 1
            g = jax.tree.map(jnp.negative, grad(other, forget))
        else:
            calls["retain"] += 1
            g = grad(other, retain)
        u, own = alone(g, own, other)
        other = optax.apply_updates(other, u)
    assert_same(params, other, rtol=1e-6)
    assert calls == {"forget": 2, "retain": 4}


def test_sharpness_awareness_takes_the_gradient_at_the_worse_point():
    matrix = jnp.diag(jnp.array([1.0, 10.0]))
    params = {"x": jnp.array([1.0, 0.5])}

    def loss(p):
        return 0.5 * p["x"] @ matrix @ p["x"]

    g = jax.grad(loss)(params)
    tx = sharpness_aware(optax.sgd(1.0), 0.1)
    u, state = tx.update(g, tx.init(params), params, grad_fn=jax.grad(loss))
    x, a = np.array([1.0, 0.5]), np.diag([1.0, 10.0])
    direction = a @ x / np.linalg.norm(a @ x)
    expected = a @ (x + 0.1 * direction)
    np.testing.assert_allclose(u["x"], -expected, rtol=1e-5)
    numbers = monitored(state)
    np.testing.assert_allclose(
        numbers["sharpness_aware_norm"], np.linalg.norm(a @ x), rtol=1e-5
    )
    np.testing.assert_allclose(
        numbers["sharpness_aware_moved_norm"], np.linalg.norm(expected), rtol=1e-5
    )
    both = {**params, "y": jnp.ones(2)}
    wrong = freeze(tx, ["x"])
    with pytest.raises(ValueError, match=r"put freeze.*inside"):
        wrong.update(both, wrong.init(both), both, grad_fn=jax.grad(loss))
    right = sharpness_aware(freeze(optax.sgd(1.0), ["x"]), 0.1)
    g = {**g, "y": jnp.zeros(2)}
    v, _ = right.update(g, right.init(both), both, grad_fn=jax.grad(loss))
    np.testing.assert_allclose(v["x"], u["x"], rtol=1e-6)
    assert not v["y"].any()
