"""Masked teachers: exact counts in each layer, and a schedule that ends whole."""

from functools import partial

import jax
import numpy as np
import pytest
from quick_compile import jit
from transfer_models import params_like, same_bits, tiny_model

from lt_mia_jax.transfer.weightspace.masking import (
    mask_teacher,
    masked_fraction,
)
from lt_mia_jax.trees import flatten, split_layers


def smallest_to_zero(arrays, r):
    """Arrays with their smallest entries zeroed together, from one sorted list."""
    values = np.concatenate([np.ravel(x) for x in arrays])
    order = np.argsort(-np.abs(values), kind="stable")
    values[order[len(values) - round(r * len(values)) :]] = 0
    ends = np.cumsum([x.size for x in arrays])[:-1]
    parts = np.split(values, ends)
    return [p.reshape(x.shape) for p, x in zip(parts, arrays, strict=True)]


@pytest.mark.parametrize("name", ["gpt2", "griffin"])
def test_each_layer_loses_its_own_smallest_entries(name):
    params = params_like(tiny_model(name), 0)
    rest, before = split_layers(params)
    found_rest, found = split_layers(jit(partial(mask_teacher, r=0.3))(params))
    assert same_bits(rest, found_rest)
    for layer, masked in zip(before, found, strict=True):
        flat = {p: np.asarray(x) for p, x in flatten(layer).items()}
        names = [p for p in flat if p.endswith(("kernel", "blocks"))]
        expected = smallest_to_zero([flat[p] for p in names], 0.3)
        flat |= dict(zip(names, expected, strict=True))
        for path, leaf in flatten(masked).items():
            np.testing.assert_array_equal(leaf, flat[path], err_msg=path)


def test_a_threshold_for_the_model_may_empty_a_layer_and_one_a_layer_does_not():
    params = params_like(tiny_model("llama"), 0)
    scale = np.array([1, 1, 1, 1e-3], np.float32)
    params["periods"] = jax.tree.map(
        lambda x: x * scale.reshape(-1, *(1,) * (x.ndim - 1)), params["periods"]
    )
    left = {}
    for scope in ("layer", "model"):
        masked = jit(partial(mask_teacher, r=0.25, scope=scope))
        flat = flatten(masked(params))
        kernels = [
            np.asarray(x)
            for p, x in flat.items()
            if p.startswith("periods") and p.endswith("kernel")
        ]
        layers = [sum((k[n] != 0).sum() for k in kernels) for n in range(4)]
        total = sum(k.size for k in kernels)
        assert sum(layers) == total - round(0.25 * total)
        left[scope] = np.array(layers) / (total / 4)
    np.testing.assert_allclose(left["layer"], 0.75)
    np.testing.assert_allclose(left["model"], [1, 1, 1, 0], atol=0.02)


def test_nothing_masked_changes_no_bit_and_everything_leaves_zeros():
    params = params_like(tiny_model("gpt2"), 0)
    assert same_bits(mask_teacher(params, 0.0), params)
    flat = flatten(mask_teacher(params, 1.0, "model", lambda path: "head" not in path))
    assert not any(np.asarray(x).any() for x in flat.values())


def test_the_teacher_is_restored_in_equal_stages():
    found = [masked_fraction(i, 1000) for i in range(1000)]
    expected = np.repeat([0.2, 0.15, 0.1, 0.05, 0.0], 200)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    short = [masked_fraction(i, 3, rmax=0.4, step=0.1) for i in range(3)]
    np.testing.assert_allclose(short, [0.4, 0.3, 0.1], atol=1e-9)
    assert masked_fraction(4, 5, rmax=0.0) == 0.0


def test_settings_out_of_range_are_refused():
    params = params_like(tiny_model("gpt2"), 0)
    with pytest.raises(ValueError, match=r"r = 1\.5"):
        mask_teacher(params, 1.5)
    with pytest.raises(ValueError, match="belong to no layer"):
        mask_teacher(params, 0.5, include=lambda path: True)
    with pytest.raises(ValueError, match="iteration = 5"):
        masked_fraction(5, 5)
    for settings in (
        {"rmax": 0.2, "step": 0.15},
        {"rmax": 0.2, "step": 0.0},
        {"rmax": 2.0},
    ):
        with pytest.raises(ValueError, match="expected rmax"):
            masked_fraction(0, 5, **settings)
