"""Merging against the definition, parameter by parameter, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle_transforms import flat
from quick_compile import jit
from transfer.weightspace.weight_trees import grid, plus

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.transfer.weightspace.ties import (
    mean,
    sign_conflict,
    task_arithmetic,
    ties_merge,
)
from lt_mia_jax.trees import flatten

NORMS = ("final_norm/scale", "periods/slot_0/mixer_norm/scale")
PROTECTED = (*NORMS, "periods/slot_0/mixer/log_decay")


def oracle(base, tasks, density, lam, elect, agg, scope, protected):
    """The definition, one parameter after the other."""
    base = {name: np.float64(leaf) for name, leaf in flatten(base).items()}
    deltas = [
        {name: np.float64(leaf) - base[name] for name, leaf in flatten(task).items()}
        for task in tasks
    ]
    names = [name for name in base if name not in protected]
    groups = [names] if scope == "global" else [[name] for name in names]
    for delta in deltas:
        for group in groups:
            values = np.concatenate([delta[name].ravel() for name in group])
            order = sorted(range(values.size), key=lambda i: (-abs(values[i]), i))
            kept = set(order[: round(density * values.size)])
            number = 0
            for name in group:
                for index in np.ndindex(delta[name].shape):
                    if number not in kept:
                        delta[name][index] = 0.0
                    number += 1
    sign, balance = {}, 0
    for name, leaf in base.items():
        for index in np.ndindex(leaf.shape):
            column = [delta[name][index] for delta in deltas]
            if elect == "count":
                column = [np.sign(x) for x in column]
            sign[name, index] = int(np.sign(sum(column)))
            balance += sign[name, index]
    out = {}
    for name, leaf in base.items():
        out[name] = leaf.copy()
        for index in np.ndindex(leaf.shape):
            s = sign[name, index] or (-1 if balance < 0 else 1)
            column = [d[name][index] for d in deltas if np.sign(d[name][index]) == s]
            if column:
                total = np.mean(column) if agg == "mean" else max(column, key=abs)
                out[name][index] += lam * total
    return out


def same(found, expected):
    for name, leaf in flatten(found).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("elect", "agg", "scope", "density", "lam"),
    [
        ("mass", "mean", "global", 0.2, 1.0),
        ("mass", "mean", "global", 1.0, 0.5),
        ("count", "max", "leaf", 0.5, 2.0),
    ],
)
def test_merging_is_the_definition(elect, agg, scope, density, lam):
    base = grid(0)
    tasks = [plus(base, grid(seed)) for seed in (1, 2, 3)]
    found = jit(
        lambda base, tasks: ties_merge(
            base, tasks, density=density, lam=lam, elect=elect, agg=agg, scope=scope
        )
    )(base, tasks)
    expected = oracle(base, tasks, density, lam, elect, agg, scope, PROTECTED)
    same(found, expected)


def test_everything_is_trimmed_when_nothing_is_protected():
    base, tasks = grid(0), [plus(grid(0), grid(seed)) for seed in (4, 5)]
    found = ties_merge(base, tasks, density=0.1, protect=())
    same(found, oracle(base, tasks, 0.1, 1.0, "mass", "mean", "global", ()))
    protected = ties_merge(base, tasks, density=0.0)
    moved = {
        name
        for name, leaf in flatten(protected).items()
        if (leaf != flatten(base)[name]).any()
    }
    assert moved == set(PROTECTED)


def test_exactly_so_many_entries_are_kept_of_distinct_and_of_equal_ones():
    """The released code keeps 201 of 1,000 at density 0.2."""
    rng = np.random.default_rng(0)
    base = {"head": {"kernel": jnp.zeros((10, 100))}}
    distinct = rng.permutation(np.arange(1, 1001)) * rng.choice([-1, 1], 1000)
    for values in (distinct, np.ones(1000)):
        delta = jnp.asarray(values.reshape(10, 100), jnp.float32)
        found = flat(ties_merge(base, [{"head": {"kernel": delta}}]))
        assert (found != 0).sum() == 200
    assert found[:200].all()


def test_a_sum_of_zero_takes_the_sign_of_most_others():
    """Entry 0 cancels. The released code takes minus when signs are in balance."""

    def merged(rest):
        base = {"head": {"kernel": jnp.zeros(3)}}
        ends = [[2.0, *rest], [-2.0, *rest]]
        tasks = [{"head": {"kernel": jnp.asarray(each)}} for each in ends]
        return float(ties_merge(base, tasks, density=1.0)["head"]["kernel"][0])

    assert merged([1.0, 1.0]) == 2.0
    assert merged([-1.0, -1.0]) == -2.0
    assert merged([1.0, -1.0]) == 2.0
    assert merged([0.0, 0.0]) == 2.0


def test_identities_hold_bit_for_bit():
    rng = np.random.default_rng(1)
    base, one, two = (
        jax.tree.map(
            lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), grid(seed)
        )
        for seed in (0, 1, 2)
    )

    def check(start, task, other):
        equal(ties_merge(start, [task], density=1.0), task)
        equal(ties_merge(start, [task, other], lam=0.0), start)
        equal(task_arithmetic(start, [task, other], lam=0.0), start)
        equal(mean([task]), task)
        assert {leaf.dtype for leaf in jax.tree.leaves(mean([task, other]))} == {
            start["head"]["kernel"].dtype
        }

    check(base, one, two)
    check(
        *(
            jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"head": tree["head"]})
            for tree in (base, one, two)
        )
    )
    equal(ties_merge(base, [one, two]), ties_merge(base, [two, one]))
    equal(ties_merge(base, [base, base]), base)


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_equal_signs_at_full_density_give_the_mean_and_none_conflicts():
    base = grid(0)
    steps = [jax.tree.map(jnp.abs, grid(seed)) for seed in (1, 2)]
    steps = [jax.tree.map(lambda x: x + 0.25, step) for step in steps]
    tasks = [plus(base, step) for step in steps]
    found = ties_merge(base, tasks, density=1.0)
    equal(found, mean(tasks))
    assert not flat(sign_conflict(base, tasks)).any()
    arithmetic = task_arithmetic(base, tasks, lam=0.5)
    equal(arithmetic, found)


def test_conflicts_are_counted_against_the_elected_sign():
    base = {"head": {"kernel": jnp.zeros(4)}}
    deltas = [[3.0, -1.0, 0.0, 2.0], [-1.0, -1.0, 0.0, -2.0], [-1.0, 4.0, 0.0, 0.0]]
    tasks = [{"head": {"kernel": jnp.asarray(each)}} for each in deltas]
    by_mass = sign_conflict(base, tasks)["head"]["kernel"]
    np.testing.assert_allclose(by_mass, [2 / 3, 2 / 3, 0, 1 / 3], rtol=1e-6)
    by_count = sign_conflict(base, tasks, elect="count")["head"]["kernel"]
    np.testing.assert_allclose(by_count, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


def test_devices_do_not_change_a_bit():
    mesh = make_mesh(1, 4)
    base = grid(0)
    tasks = [plus(base, grid(seed)) for seed in (1, 2)]

    def spread(tree):
        place = NamedSharding(mesh, P("fsdp"))
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    def merge(base, tasks):
        return ties_merge(base, tasks, density=0.3)

    alone = merge(base, tasks)
    for found in (
        merge(spread(base), [spread(task) for task in tasks]),
        jit(merge)(spread(base), [spread(task) for task in tasks]),
    ):
        equal(found, alone)
        leaf = found["embedding"]["tokens"]
        assert len(leaf.sharding.device_set) == 4


def test_what_cannot_be_merged_is_refused():
    base = grid(0)
    other = {**grid(1), "head": {"kernel": jnp.zeros((4, 8))}}
    with pytest.raises(ValueError, match="tree 3 differs from the first in"):
        ties_merge(base, [grid(1), other])
    with pytest.raises(ValueError, match=r"density = 1.5, expected in \[0, 1\]"):
        ties_merge(base, [grid(1)], density=1.5)
    with pytest.raises(ValueError, match="nothing to merge"):
        ties_merge(base, [])
    with pytest.raises(ValueError, match="tree 2 differs"):
        mean([base, other])
