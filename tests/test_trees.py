import jax
import numpy as np
import optax
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.trees import flatten, named_leaves, select, unflatten


def test_tree_paths_invert():
    tree = {"b": {"x": np.zeros(2), "y": {"z": np.ones((2, 3), np.float16)}}, "a": 1}
    flat = flatten(tree)
    assert list(flat) == ["a", "b/x", "b/y/z"]
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(tree)


def test_select_refuses_idle_patterns():
    names = ["layers/q/kernel", "layers/k/kernel"]
    assert select(names, ["*/q/*"]) == ["layers/q/kernel"]
    with pytest.raises(InputError, match="typo"):
        select(names, ["*/q/*", "*typo*"])


def test_leaves_have_the_paths_of_flatten_in_the_order_of_jax():
    tree = {"b": {"x": 1.0, "y": {"z": 2.0}}, "a": 3.0}
    assert named_leaves(tree) == flatten(tree)
    state = optax.adam(1e-3).init({"w": np.zeros(2), "b": {"c": np.ones(3)}})
    names = ["0.count", "0.mu.b.c", "0.mu.w", "0.nu.b.c", "0.nu.w"]
    assert list(named_leaves(state, ".")) == names
    leaves = zip(named_leaves(state).values(), jax.tree.leaves(state), strict=True)
    assert all(a is b for a, b in leaves)
