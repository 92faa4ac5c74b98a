"""Each transformation in a neutral and an active setting, and trees to run it on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from quick_compile import jit

from lt_mia_jax.training.transforms.mask import mask_updates
from lt_mia_jax.transfer.adapt.protect import fisher_damp, fisher_pull
from lt_mia_jax.transfer.adapt.reglora import add_reglora
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
    project_against,
    project_realized_update,
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


def on_adapters(tx):
    """A transformation of adapters, on the trees of the cases: `a` times `c`."""

    def adapters(x):
        return {"kernel": (x["a"], x["b"]["c"][:, None])}

    def update(updates, state, params=None, **extra):
        pairs = None if params is None else adapters(params)
        new, state = tx.update(adapters(updates), state, pairs, **extra)
        a, c = new["kernel"]
        return {"a": a, "b": {**updates["b"], "c": c[:, 0]}}, state

    return optax.GradientTransformationExtraArgs(lambda p: tx.init(adapters(p)), update)


def lora_mask(params):
    return {"kernel": params["a"][:, :1] > 0}


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
    "project_realized_update": Case(
        lambda p: project_realized_update(adamw(), form="equality"),
        # Steps that descend on the retain loss pass.
        lambda p: project_realized_update(adamw()),
        adamw,
        needs=(*RETAIN, "params"),
        aligned=True,
    ),
    "project_realized_update stack": Case(
        lambda p: project_realized_update(optax.adam(0.1), size=3, form="equality"),
        lambda p: project_realized_update(optax.adam(0.1), size=3),
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
    "fisher_pull": Case(
        lambda p: fisher_pull(jax.tree.map(jnp.square, p), sines(p), 1.0),
        lambda p: fisher_pull(jax.tree.map(jnp.square, p), None, 0.0),
        needs=PARAMS,
    ),
    "fisher_damp": Case(
        lambda p: fisher_damp(jax.tree.map(jnp.square, p), 1.0),
        lambda p: fisher_damp(jax.tree.map(jnp.square, p), 0.0),
    ),
    "add_reglora": Case(
        lambda p: on_adapters(add_reglora(lora_mask(p), 1.0)),
        lambda p: on_adapters(add_reglora(lora_mask(p), 0.0)),
        needs=PARAMS,
    ),
    "mask_updates": Case(
        lambda p: mask_updates(some(p)), lambda p: mask_updates(ones(p))
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


def quadratic(params, centers):
    """Mean over rows of half the squared distance."""
    return 0.5 * jnp.mean(jnp.sum((params["x"][None] - centers) ** 2, axis=1))
