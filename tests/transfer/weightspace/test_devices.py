"""Operations on sharded trees: the values of one device, on all devices.

`LT_MIA_TEST_DEVICES=8 pytest tests/transfer/weightspace/test_devices.py` takes eight.
"""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from transfer.weightspace.weight_trees import grid, plus

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.transfer.weightspace.difference import transfer_diff
from lt_mia_jax.transfer.weightspace.expand import expand, fit_gene
from lt_mia_jax.transfer.weightspace.masking import mask_teacher
from lt_mia_jax.transfer.weightspace.pack import apply, pack
from lt_mia_jax.transfer.weightspace.sparse import compose, lt_mask, sparse_delta
from lt_mia_jax.transfer.weightspace.swap import layer_swap
from lt_mia_jax.transfer.weightspace.ties import (
    mean,
    sign_conflict,
    task_arithmetic,
    ties_merge,
)

SHAPES = {
    "embedding": {"tokens": (8, 16)},
    "head": {"kernel": (16, 8)},
    "periods": {
        "slot_0": {
            "mixer": {"query": {"kernel": (8, 8, 16)}, "log_decay": (8, 16)},
            "mixer_norm": {"scale": (8, 16)},
        }
    },
    "tail_0": {
        "mixer": {"query": {"kernel": (8, 16)}, "log_decay": (16,)},
        "mixer_norm": {"scale": (16,)},
    },
}


def sparse(base, one, two):
    deltas = []
    for tuned in (one, two):
        mask = lt_mask(tuned, base, 100)
        deltas.append(sparse_delta(tuned, base, mask))
    return compose(base, deltas)


OPERATIONS = {
    "ties": lambda base, *tasks: ties_merge(base, tasks, density=0.3),
    "conflict": lambda base, *tasks: sign_conflict(base, tasks),
    "arithmetic": lambda base, *tasks: task_arithmetic(base, tasks, lam=0.3),
    "mean": lambda *models: mean(models),
    "difference": partial(transfer_diff, scale=0.7),
    "swap": lambda base, *two: layer_swap(*two, bottom=2, top=1),
    "sparse": sparse,
    "mask": lambda base, *_: mask_teacher(base, 0.3),
    "pack": lambda base, one, _: apply(base, [pack(base, one)]),
    "gene": lambda base, *_: expand(fit_gene(base)[0], 11),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_devices_do_not_change_a_result(name):
    count = jax.device_count()
    assert count > 1
    mesh = make_mesh(1, count)

    def spread(leaf):
        axis = next(i for i, n in enumerate(leaf.shape) if n % count == 0)
        place = P(*[None] * axis, "fsdp")
        return jax.device_put(leaf, NamedSharding(mesh, place))

    base = grid(0, SHAPES)
    trees = [base, *(plus(base, grid(seed, SHAPES)) for seed in (1, 2))]
    expected = OPERATIONS[name](*trees)
    found = OPERATIONS[name](*jax.tree.map(spread, trees))
    # Sums over layers may be added in another order.
    close = 1e-6 if name == "gene" else 0
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=close, atol=close)
    used = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)}
    # A layer of leaves that are split by layers is on one device.
    assert used == {count} or name == "gene"
