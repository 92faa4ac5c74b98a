"""The contract of every transformation, then what each one does.

Projections have a file of their own for what they do.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from model_zoo import LanguageModel, configs
from oracle_transforms import AdamW, adaptive_weights, dual_multipliers, flat
from quick_compile import jit, run

from lt_mia_jax.errors import InputError
from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.training import Checkpointer
from lt_mia_jax.unlearning.transforms import (
    adaptive_combine,
    alternate,
    ascend,
    combine_forget_retain,
    dual_combine,
    ema_teacher,
    ewc_pull,
    fisher_masked,
    freeze,
    layer_mask,
    monitored,
    project_against,
    project_realised_update,
    retain_subspace_projection,
    saliency_masked,
    sharpness_aware,
    stochastic_restore,
    trust_region,
)

SHAPES = {"a": (8, 4), "b": {"c": (4,), "d": (4, 8, 4)}}
DTYPES = {"a": jnp.float32, "b": {"c": jnp.bfloat16, "d": jnp.float32}}
SPECS = {"a": P("fsdp"), "b": {"c": P(), "d": P(None, "fsdp")}}


def tree(seed, *front, dtypes=None):
    rng = np.random.default_rng(seed)
    found = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=(*front, *shape)), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    if dtypes is not None:
        found = jax.tree.map(lambda x, d: x.astype(d), found, dtypes)
    return found


def ones(params):
    return jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)


def some(params):
    return jax.tree.map(lambda x: x > 0, params)


def adamw(rate=0.1):
    return optax.adamw(rate, weight_decay=0.1)


def sines(params):
    return jax.tree.map(jnp.sin, params)


@dataclass(frozen=True)
class Case:
    """A transformation with a setting that acts, and one that does not."""

    active: Callable
    neutral: Callable
    inner: Callable = optax.identity
    """What the neutral setting amounts to."""
    needs: tuple[str, ...] = ()
    stack: int | None = None
    aligned: bool = False
    """The neutral setting is neutral for retain gradients along the gradient."""

    def extras(self, seed, params, *, gradient=None):
        front = () if self.stack is None else (self.stack,)
        retain = tree(100 + seed, *front)
        if gradient is not None and self.aligned:
            retain = gradient
            if self.stack is not None:
                retain = jax.tree.map(lambda g: jnp.stack([g] * self.stack), gradient)
        found = {
            "retain_grads": jax.tree.map(
                lambda r, p: r.astype(p.dtype), retain, params
            ),
            "retain_value": jnp.float32(0.7 + 0.1 * seed),
            "second_moment": jax.tree.map(jnp.square, tree(200 + seed)),
            "grad_fn": jax.tree_util.Partial(sines),
        }
        return {name: found[name] for name in self.needs if name in found}


RETAIN = ("retain_grads",)
VALUE = ("retain_grads", "retain_value")
PARAMS = ("params",)

CASES = {
    "ascend": Case(lambda p: ascend(2.0), lambda p: ascend(-1.0)),
    "combine_forget_retain": Case(
        lambda p: combine_forget_retain(
            0.5,
            lambda step: 1.0 + step,
            forget_transform=optax.clip_by_global_norm(1.0),
            retain_transform=optax.trace(0.9),
        ),
        lambda p: combine_forget_retain(1.0, 0.0),
        needs=RETAIN,
    ),
    "dual_combine": Case(
        lambda p: dual_combine(tolerance=0.5, step_size=2.0, initial=1.0, warmup=1),
        lambda p: dual_combine(tolerance=0.5, step_size=0.0, initial=0.0, warmup=0),
        needs=VALUE,
    ),
    "adaptive_combine": Case(
        lambda p: adaptive_combine(steps_per_epoch=1),
        lambda p: adaptive_combine(steps_per_epoch=1, lowest=0.0, highest=0.0),
        needs=VALUE,
    ),
    "project_against": Case(
        lambda p: project_against(),
        lambda p: project_against(when="conflict"),
        needs=RETAIN,
        aligned=True,
    ),
    "project_against leaf": Case(
        lambda p: project_against(scope="leaf"),
        lambda p: project_against(scope="leaf", when="conflict"),
        needs=RETAIN,
        aligned=True,
    ),
    "retain_subspace_projection": Case(
        lambda p: retain_subspace_projection(size=3),
        # Gradients this small are as good as none against such a damping.
        lambda p: retain_subspace_projection(size=3, damping=1e30),
        needs=RETAIN,
    ),
    "retain_subspace_projection adam": Case(
        lambda p: retain_subspace_projection(size=2, metric="adam", refresh=2),
        lambda p: retain_subspace_projection(size=2, metric="adam", damping=1e30),
        needs=("retain_grads", "second_moment"),
    ),
    "project_realised_update": Case(
        lambda p: project_realised_update(adamw(), form="equality"),
        # Steps that descend on the retain loss pass.
        lambda p: project_realised_update(adamw()),
        adamw,
        needs=(*RETAIN, "params"),
        aligned=True,
    ),
    "project_realised_update stack": Case(
        lambda p: project_realised_update(optax.adam(0.1), size=3, form="equality"),
        lambda p: project_realised_update(optax.adam(0.1), size=3),
        lambda: optax.adam(0.1),
        needs=RETAIN,
        stack=3,
        aligned=True,
    ),
    "saliency_masked": Case(
        lambda p: saliency_masked(adamw(), some(p)),
        lambda p: saliency_masked(adamw(), ones(p)),
        adamw,
        needs=PARAMS,
    ),
    "fisher_masked": Case(
        lambda p: fisher_masked(adamw(), quantile=0.5),
        lambda p: fisher_masked(adamw(), quantile=0.0),
        adamw,
        needs=PARAMS,
    ),
    "fisher_masked fixed": Case(
        lambda p: fisher_masked(
            adamw(), quantile=0.3, fisher=jax.tree.map(jnp.square, p), move="smallest"
        ),
        lambda p: fisher_masked(
            adamw(), quantile=0.0, fisher=jax.tree.map(jnp.square, p), move="smallest"
        ),
        adamw,
        needs=PARAMS,
    ),
    "freeze": Case(
        lambda p: freeze(adamw(), ["b/*"]),
        lambda p: freeze(adamw(), lambda path: True),
        adamw,
        needs=PARAMS,
    ),
    "ewc_pull": Case(
        lambda p: ewc_pull(2.0, jax.tree.map(jnp.cos, p), jax.tree.map(jnp.square, p)),
        lambda p: ewc_pull(0.0),
        needs=PARAMS,
    ),
    "trust_region": Case(
        lambda p: trust_region(0.5, jax.tree.map(jnp.square, p)),
        lambda p: trust_region(1e9),
    ),
    "trust_region start": Case(
        lambda p: trust_region(0.5, around="start"),
        lambda p: trust_region(1e9, around="start"),
        needs=PARAMS,
    ),
    "ema_teacher": Case(
        lambda p: ema_teacher(0.9, some(p)), lambda p: ema_teacher(1.0), needs=PARAMS
    ),
    "stochastic_restore": Case(
        lambda p: stochastic_restore(0.5, jax.tree.map(jnp.cos, p), seed=3),
        lambda p: stochastic_restore(0.0),
        needs=PARAMS,
    ),
    "alternate": Case(
        lambda p: alternate(combine_forget_retain(0, 1), ascend(), every=2),
        lambda p: alternate(optax.identity(), optax.set_to_zero(), every=100),
    ),
    "sharpness_aware": Case(
        lambda p: sharpness_aware(adamw(), 0.5),
        lambda p: sharpness_aware(adamw(), 0.0),
        adamw,
        needs=("grad_fn", "params"),
    ),
}
# The first of the alternating transformations needs it.
ALTERNATE_ACTIVE = Case(
    CASES["alternate"].active, CASES["alternate"].neutral, needs=RETAIN
)
every_case = pytest.mark.parametrize("name", CASES)


def active_case(name):
    return ALTERNATE_ACTIVE if name == "alternate" else CASES[name]


@functools.lru_cache
def compiled(name):
    """The active setting's transformation, and its update compiled for one device."""
    tx = active_case(name).active(tree(0, dtypes=DTYPES))
    return tx, jit(tx.update)


@functools.lru_cache
def compiled_inner(inner):
    return inner(), jit(inner().update)


@functools.lru_cache
def run_active(name):
    """Updates and states of three steps."""
    case, params = active_case(name), tree(0, dtypes=DTYPES)
    tx, update = compiled(name)
    state, updates, states = tx.init(params), [], []
    for seed in range(3):
        g = tree(1 + seed, dtypes=DTYPES)
        u, state = update(g, state, params, **case.extras(seed, params))
        updates.append(u)
        states.append(state)
    return updates, states


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(v.astype(jnp.float32)) for v in (x, y))
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- the contract


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
        if case.inner is optax.identity or name.startswith("project_realised"):
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


# ---------------------------------------------------------------- combinations


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1)])
def test_ascent_on_a_loss_is_descent_on_its_negative(optimizer):
    targets = jnp.array([0, 2, 1])

    def nll(params):
        logits = jnp.tanh(params["x"]) @ params["w"]
        return -jax.nn.log_softmax(logits)[jnp.arange(3), targets].mean()

    rng = np.random.default_rng(0)
    start = {
        "x": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
    }
    one = optax.chain(ascend(), optimizer)

    @jit
    def two_steps(a, b, state, other):
        u, state = one.update(jax.grad(nll)(a), state, a)
        v, other = optimizer.update(jax.grad(lambda p: -nll(p))(b), other, b)
        return u, v, state, other, nll(optax.apply_updates(a, u))

    a, b, state, other = start, start, one.init(start), optimizer.init(start)
    losses = [float(nll(a))]
    for _ in range(5):
        u, v, state, other, loss = two_steps(a, b, state, other)
        assert_same(u, v)
        a, b = optax.apply_updates(a, u), optax.apply_updates(b, v)
        losses.append(float(loss))
    assert (np.diff(losses) > 0).all()


def test_a_combination_is_the_weighted_sum():
    g, r = tree(0), tree(1)
    tx = combine_forget_retain(lambda step: 2.0 * step, 3.0)
    state = tx.init(g)
    for step in range(3):
        u, state = tx.update(g, state, retain_grads=r)
        np.testing.assert_allclose(flat(u), 2 * step * flat(g) + 3 * flat(r), atol=1e-5)
    numbers = monitored(state)
    lengths = np.linalg.norm(flat(g)), np.linalg.norm(flat(r))
    np.testing.assert_allclose(numbers["combine_forget_norm"], lengths[0], rtol=1e-5)
    np.testing.assert_allclose(
        numbers["combine_cosine"], flat(g) @ flat(r) / np.prod(lengths), rtol=1e-4
    )


def test_a_clip_in_front_of_a_combination_does_not_reach_the_retain_side():
    g, r = tree(0), tree(1)
    clip = optax.clip_by_global_norm(0.1)
    chained = optax.chain(clip, combine_forget_retain())
    inside = combine_forget_retain(forget_transform=clip, retain_transform=clip)
    short = {
        name: 0.1 * flat(x) / np.linalg.norm(flat(x))
        for name, x in (("g", g), ("r", r))
    }
    u, _ = chained.update(g, chained.init(g), g, retain_grads=r)
    np.testing.assert_allclose(flat(u), short["g"] + flat(r), atol=1e-6)
    u, _ = inside.update(g, inside.init(g), g, retain_grads=r)
    np.testing.assert_allclose(flat(u), short["g"] + short["r"], atol=1e-6)


def test_both_sides_get_all_extra_arguments():
    def update(updates, state, params=None, *, forget_value, retain_grads, **extra):
        factor = forget_value * retain_grads["b"]["c"][0]
        return jax.tree.map(lambda x: factor * x, updates), state

    own = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    g, r = tree(0), tree(1)
    tx = combine_forget_retain(forget_transform=own, retain_transform=own)
    u, _ = run(tx, g, tx.init(g), retain_grads=r, forget_value=jnp.float32(3.0))
    factor = 3.0 * float(r["b"]["c"][0])
    np.testing.assert_allclose(flat(u), factor * (flat(g) + flat(r)), rtol=1e-5)


def test_adam_sees_only_the_ratio_of_the_weights():
    g, r = tree(0), tree(1)

    def step(*weights):
        tx = optax.chain(combine_forget_retain(*weights), optax.scale_by_adam())
        return flat(tx.update(g, tx.init(g), g, retain_grads=r)[0])

    np.testing.assert_allclose(step(1.0, 1.0), step(7.0, 7.0), atol=1e-5)
    assert np.abs(step(1.0, 1.0) - step(7.0, 1.0)).max() > 0.5


def test_the_multiplier_follows_its_recursion():
    setting = dict(tolerance=0.5, step_size=2.0, initial=1.0, warmup=2)
    values = [0.9, 0.8, 0.7, 0.6, 0.1, 0.0, 0.0, 0.2, 0.9]
    tx = dual_combine(**setting, forget_weight=0.5)
    g, r = tree(0), tree(1)
    state, update = tx.init(g), jit(tx.update)
    for value, expected in zip(
        values, dual_multipliers(values, **setting), strict=True
    ):
        u, state = update(g, state, retain_grads=r, retain_value=value)
        np.testing.assert_allclose(
            flat(u), 0.5 * flat(g) + expected * flat(r), atol=1e-5
        )
        found = float(monitored(state)["dual_combine_multiplier"])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert min(dual_multipliers(values, **setting)) == 0
    assert dual_multipliers(values, **setting)[:3] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="must not be negative"):
        dual_combine(tolerance=0.5, step_size=1.0, initial=-1.0, warmup=0)


def test_the_adaptive_weight_follows_the_published_rule():
    values = [1.0, 1.2, 0.8, 1.1, 1.3, 1.5, 1.7, 1.9, 5.0, 0.2, 1.6]
    tx = adaptive_combine(steps_per_epoch=3)
    g, r = tree(0), tree(1)
    state, update, found = tx.init(g), jit(tx.update), []
    for value in values:
        u, state = update(g, state, retain_grads=r, retain_value=value)
        weight = float(monitored(state)["adaptive_combine_weight"])
        np.testing.assert_allclose(flat(u), flat(g) + weight * flat(r), atol=1e-5)
        found.append(weight)
    np.testing.assert_allclose(
        found, adaptive_weights(values, steps_per_epoch=3), atol=1e-6
    )
    assert len(set(found)) > 3
    # The mean of the batch losses, whatever the batch size.
    np.testing.assert_allclose(monitored(state)["adaptive_combine_baseline"], 1.0)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        adaptive_combine(steps_per_epoch=0)


# ---------------------------------------------------------------- accumulation


DUAL = dict(tolerance=0.5, step_size=1.0, initial=1.0, warmup=0)


def quadratic(params, centers):
    """Mean over rows of half the squared distance."""
    return 0.5 * jnp.mean(jnp.sum((params["x"][None] - centers) ** 2, axis=1))


def test_multi_steps_drops_extra_arguments_and_that_is_noticed():
    params = tree(0)
    multi = optax.MultiSteps(dual_combine(**DUAL), 2)
    inside = optax.chain(multi.gradient_transformation(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"needs retain_grads.*MultiSteps"):
        inside.update(
            tree(1), inside.init(params), params, retain_grads=tree(2), retain_value=1.0
        )


def test_accumulating_both_sides_by_hand_is_the_large_batch():
    """Two micro-batches, one update: what the whole batch gives, and one dual step."""
    rng = np.random.default_rng(0)
    forget, retain = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)
    params = {"x": jnp.asarray(rng.normal(size=3), jnp.float32)}
    tx = optax.chain(dual_combine(**DUAL), optax.adam(0.1))
    value_and_grad = jax.value_and_grad(quadratic)
    whole = jit(value_and_grad)

    @jit
    def accumulated(params, state):
        def micro(total, rows):
            f, r = (value_and_grad(params, x) for x in rows)
            return jax.tree.map(jnp.add, total, (f, r)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        split = (forget.reshape(2, 4, 3), retain.reshape(2, 4, 3))
        total, _ = jax.lax.scan(micro, (zero, zero), split)
        (_, gf), (lr, gr) = jax.tree.map(lambda x: x / 2, total)
        return tx.update(gf, state, params, retain_grads=gr, retain_value=lr)

    _, gf = whole(params, forget)
    lr, gr = whole(params, retain)
    expected, _ = run(tx, gf, tx.init(params), params, retain_grads=gr, retain_value=lr)
    u, state = accumulated(params, tx.init(params))
    assert_same(u, expected, rtol=1e-5)
    moved = 1.0 + (float(lr) - 0.5)
    np.testing.assert_allclose(state[0].multiplier, moved, rtol=1e-5)
    assert int(state[0].steps) == 1
    # MultiSteps itself forwards the last micro-batch's retain side only.
    multi = optax.MultiSteps(tx, 2)
    state, update = multi.init(params), jit(multi.update)
    for part in (slice(0, 4), slice(4, 8)):
        _, gf = whole(params, forget[part])
        lr, gr = whole(params, retain[part])
        _, state = update(gf, state, params, retain_grads=gr, retain_value=lr)
    wrong = 1.0 + (float(lr) - 0.5)
    np.testing.assert_allclose(state.inner_opt_state[0].multiplier, wrong, rtol=1e-5)
    assert abs(wrong - moved) > 1e-2


# ---------------------------------------------------------------- masks


def bits(tree):
    return [np.asarray(x).view(np.uint32) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("kind", ["saliency", "fisher"])
def test_masked_parameters_keep_every_bit(kind):
    params = tree(0)
    params["a"] = params["a"].at[0].set(-0.0)
    mask = some(tree(5))
    mask["a"] = mask["a"].at[0].set(False)
    inner = adamw()
    if kind == "saliency":
        tx = saliency_masked(inner, mask)
    else:
        fisher = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
        share = 1 - np.mean(flat(mask))
        tx = fisher_masked(inner, quantile=share, fisher=fisher)
    # Momentum of earlier, unmasked steps.
    prior = inner.init(params)
    for seed in range(3):
        _, prior = inner.update(tree(10 + seed), prior, params)
    state = tx.init(params)._replace(inner=prior)
    assert_same(state.mask, mask)

    @jit
    def step(params, state, g):
        u, state = tx.update(g, state, params)
        return optax.apply_updates(params, u), state

    moved = params
    for seed in range(50):
        moved, state = step(moved, state, tree(20 + seed))
    for old, new, m in zip(
        bits(params), bits(moved), jax.tree.leaves(mask), strict=True
    ):
        np.testing.assert_array_equal(old[~np.asarray(m)], new[~np.asarray(m)])
        assert (old[np.asarray(m)] != new[np.asarray(m)]).all()
    # Masking the gradient alone is not enough.
    u, _ = inner.update(
        jax.tree.map(lambda m, g: jnp.where(m, g, 0.0), mask, tree(20)), prior, params
    )
    assert np.abs(flat(u)[~flat(mask).astype(bool)]).max() > 1e-3


def test_a_fisher_quantile_moves_the_chosen_share():
    params, g = tree(0), tree(1)
    n, size = flat(g).size, np.abs(flat(g))
    for quantile in (0.25, 0.9):
        still = n - round((1 - quantile) * n)
        limit = np.sort(size)[still]
        tx = fisher_masked(optax.sgd(1.0), quantile=quantile)
        u, _ = tx.update(g, tx.init(params), params)
        np.testing.assert_array_equal(flat(u), np.where(size >= limit, -flat(g), 0))
        spare = fisher_masked(
            optax.sgd(1.0),
            quantile=quantile,
            fisher=jax.tree.map(jnp.square, g),
            move="smallest",
        )
        u, _ = spare.update(g, spare.init(params), params)
        limit = np.sort(size)[n - round(quantile * n)]
        np.testing.assert_array_equal(flat(u), np.where(size < limit, -flat(g), 0))
    with pytest.raises(ValueError, match="quantile"):
        fisher_masked(optax.sgd(1.0), quantile=1.0)
    with pytest.raises(ValueError, match="not booleans: \\['a'\\]"):
        saliency_masked(optax.sgd(1.0), {"a": jnp.ones(3)})


def test_frozen_leaves_stand_still_and_have_no_moments():
    params = tree(0)
    params["a"] = params["a"].at[0].set(-0.0)
    tx = freeze(optax.chain(combine_forget_retain(), adamw()), ["b/d"])
    state = tx.init(params)
    trained = params["b"]["d"]
    sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
    assert sizes == [trained.size] * 2
    # Inside, both gradients are cut alike: the same as training that leaf alone.
    alone = optax.chain(combine_forget_retain(), adamw())
    other = alone.init(trained)
    update, update_alone = jit(tx.update), jit(alone.update)
    for seed in range(3):
        g, r = tree(1 + seed), tree(10 + seed)
        u, state = update(g, state, params, retain_grads=r)
        v, other = update_alone(g["b"]["d"], other, trained, retain_grads=r["b"]["d"])
        assert_same(u["b"]["d"], v)
    moved = optax.apply_updates(params, u)
    np.testing.assert_array_equal(bits(moved["a"]), bits(params["a"]))
    np.testing.assert_array_equal(bits(moved["b"]["c"]), bits(params["b"]["c"]))


def test_other_ways_to_freeze_are_refused_or_work():
    params, r = tree(0), tree(1)
    labels = {"a": "hold", "b": {"c": "hold", "d": "train"}}
    parts = {
        "train": optax.chain(combine_forget_retain(), adamw()),
        "hold": optax.set_to_zero(),
    }
    plain = optax.partition(parts, labels)
    with pytest.raises(ValueError, match="another tree than the gradients"):
        plain.update(tree(2), plain.init(params), params, retain_grads=r)
    cut = optax.partition(parts, labels, mask_compatible_extra_args=True)
    u, _ = cut.update(tree(2), cut.init(params), params, retain_grads=r)
    tx = freeze(parts["train"], lambda path: path == "b/d")
    v, _ = tx.update(tree(2), tx.init(params), params, retain_grads=r)
    assert_same(u, v)
    with pytest.raises(InputError, match="match no parameter"):
        freeze(adamw(), ["c/*"]).init(params)
    with pytest.raises(InputError, match="no parameter is trainable"):
        freeze(adamw(), lambda path: False).init(params)


def test_arrays_for_all_parameters_may_be_given_inside_a_freeze():
    params, mask = tree(0), some(tree(1))
    inner = optax.chain(ewc_pull(1.0, tree(2)), adamw(), ema_teacher(0.9, mask))
    tx = freeze(saliency_masked(inner, mask), ["b/*"])
    u, state = run(tx, tree(3), tx.init(params), params)
    alone = saliency_masked(
        optax.chain(ewc_pull(1.0, tree(2)["b"]), adamw(), ema_teacher(0.9, mask["b"])),
        mask["b"],
    )
    v, _ = run(alone, tree(3)["b"], alone.init(params["b"]), params["b"])
    assert_same(u["b"], v)
    assert not flat(u["a"]).any()
    sizes = {x.size for x in jax.tree.leaves(state)}
    assert params["a"].size not in sizes
    with pytest.raises(ValueError, match="does not fit"):
        saliency_masked(inner, jax.tree.map(lambda m: m[:1, None], mask)).init(params)


def test_layers_are_chosen_along_the_leading_axis():
    params = {
        "embedding": {"tokens": jnp.zeros((7, 4))},
        "periods": {
            "slot_0": {
                "up": {"kernel": jnp.zeros((3, 4, 8))},
                "mix": jnp.zeros((3, 4)),
            },
            "slot_1": {"up": {"kernel": jnp.zeros((3, 4, 8))}},
        },
        "tail_0": {"up": {"kernel": jnp.zeros((4, 8))}},
    }
    mask = layer_mask(params, ["*/up/kernel"], (1, 2, 6))
    ups = mask["periods"]
    assert ups["slot_0"]["up"]["kernel"].shape == (3, 1, 1)
    found = {
        period * 2 + slot
        for slot in (0, 1)
        for period in range(3)
        if ups[f"slot_{slot}"]["up"]["kernel"][period, 0, 0]
    }
    assert found == {1, 2}
    assert mask["tail_0"]["up"]["kernel"].all()
    assert not mask["embedding"]["tokens"].any()
    assert not ups["slot_0"]["mix"].any()
    tx = saliency_masked(optax.sgd(1.0), mask)
    g = jax.tree.map(jnp.ones_like, params)
    u, _ = tx.update(g, tx.init(params), params)
    moving = flat(u["periods"]["slot_0"]["up"]["kernel"]).reshape(3, -1)
    assert (moving != 0).all(axis=1).tolist() == [False, True, False]
    assert (moving != 0).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="belong to no layer"):
        layer_mask(params, ["*"], (0,))
    with pytest.raises(InputError, match=r"layers \[7\] do not exist; the model has 7"):
        layer_mask(params, ["*/up/kernel"], (6, 7))
    with pytest.raises(InputError, match="match no parameter"):
        layer_mask(params, ["*/down/kernel"], (0,))


@pytest.mark.parametrize("name", ["llama", "griffin-preset"])
def test_layers_of_a_model(name):
    shapes = LanguageModel(configs()[name]).shapes()
    mask = layer_mask(shapes, ["*/feed_forward/*kernel"], (1,))
    shares = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(m.mean())
        for path, m in jax.tree_util.tree_leaves_with_path(mask)
    }
    moving = {path: share for path, share in shares.items() if share}
    assert len(moving) == 3
    stacked = name == "llama"
    first = "periods/slot_0" if stacked else "tail_1"
    assert all(path.startswith(f"{first}/feed_forward/") for path in moving)
    assert set(moving.values()) == {0.5 if stacked else 1.0}


# ---------------------------------------------------------------- anchors


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


# ---------------------------------------------------------------- schedules


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


# ---------------------------------------------------------------- toy problems

# Retaining cares for the first three of six numbers, forgetting for all of them.
RETAIN_AT, FORGET_AT = jnp.array([1.0, -1.0, 0.5]), jnp.arange(6.0) / 5


def retain_loss(x):
    return 0.5 * jnp.sum((x[:3] - RETAIN_AT) ** 2)


def forget_loss(x):
    return 0.5 * jnp.sum((x - FORGET_AT) ** 2)


def unlearn(tx, steps=80):
    """Forget and retain loss at the end, and the largest retain loss on the way."""
    start = jnp.concatenate([RETAIN_AT + 0.3, FORGET_AT[3:] + 0.1])

    @jit
    def step(x, state):
        gf = -jax.grad(forget_loss)(x)
        lr, gr = jax.value_and_grad(retain_loss)(x)
        u, state = tx.update(
            gf,
            state,
            x,
            retain_grads=gr,
            retain_value=lr,
            grad_fn=lambda x: -jax.grad(forget_loss)(x),
        )
        return optax.apply_updates(x, u), state, lr

    x, state, worst = start, tx.init(start), 0.0
    for _ in range(steps):
        x, state, lr = step(x, state)
        worst = max(worst, float(lr))
    rise = float(forget_loss(x) - forget_loss(start))
    return rise, float(retain_loss(x)), worst


START_RETAIN = 0.5 * 3 * 0.3**2


def test_ascent_alone_raises_both_losses():
    rise, after, _ = unlearn(optax.chain(ascend(-1.0), optax.sgd(0.03)))
    assert rise > 1
    assert after > 5 * START_RETAIN


@pytest.mark.parametrize(
    ("tx", "allowed"),
    [
        (optax.chain(combine_forget_retain(0.3, 1.0), optax.sgd(0.05)), 3.0),
        (
            optax.chain(
                dual_combine(tolerance=0.2, step_size=2.0, initial=0.0, warmup=0),
                optax.sgd(0.03),
            ),
            2.0,
        ),
        (
            optax.chain(
                adaptive_combine(steps_per_epoch=5, forget_weight=0.5), optax.sgd(0.03)
            ),
            4.0,
        ),
        (optax.chain(project_against(), optax.sgd(0.03)), 4.0),
        (
            optax.chain(
                project_against(when="conflict"),
                combine_forget_retain(),
                optax.sgd(0.03),
            ),
            1.01,
        ),
        (project_realised_update(optax.adam(0.03)), 1.2),
        (
            project_realised_update(
                optax.adamw(0.03, weight_decay=0.1), form="equality"
            ),
            1.5,
        ),
        (project_realised_update(sharpness_aware(optax.sgd(0.03), 0.1)), 1.2),
        (saliency_masked(optax.sgd(0.03), jnp.arange(6) >= 3), 1.0001),
        (optax.chain(ewc_pull(8.0), optax.sgd(0.03)), 2.0),
        (
            optax.chain(
                alternate(combine_forget_retain(0, 4), combine_forget_retain(1, 0), 2),
                optax.sgd(0.03),
            ),
            1.1,
        ),
    ],
    ids=lambda x: None if callable(getattr(x, "init", None)) else str(x),
)
def test_forgetting_rises_while_the_retain_loss_stays(tx, allowed):
    rise, after, _ = unlearn(tx)
    assert rise > 0.02
    assert after < allowed * START_RETAIN


def test_what_the_realised_projection_leaves_is_of_second_order():
    """Half the rate and twice the steps: the same way, half the rise."""
    worst = [
        unlearn(project_realised_update(optax.sgd(rate)), round(0.8 / rate))[2]
        for rate in (0.02, 0.01)
    ]
    rises = [x - START_RETAIN for x in worst]
    assert rises[0] < 0.1 * START_RETAIN
    assert 0.4 < rises[1] / rises[0] < 0.6


def test_adamw_is_the_published_one():
    """The optimizer beside which all of this is defined."""
    params, oracle = tree(0), AdamW(flat(tree(0)).size, 0.1, decay=0.1)
    tx = adamw()
    state = tx.init(params)
    for seed in range(3):
        u, state = tx.update(tree(1 + seed), state, params)
        expected = oracle.step(flat(tree(1 + seed)), flat(params))
        np.testing.assert_allclose(flat(u), expected, rtol=1e-4, atol=1e-6)
