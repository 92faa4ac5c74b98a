"""Which model each layer is from, in every kind of stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick_compile import jit
from transfer.weightspace.weight_trees import grid

from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.transfer.weightspace.swap import (
    blend_layers,
    default_sizes,
    layer_swap,
    swap_weights,
    unit_of,
)
from lt_mia_jax.trees import flatten


def stack(layers, value):
    return {
        "embedding": {"tokens": jnp.full((3, 2), value)},
        "embedding_norm": {"scale": jnp.full(2, value)},
        "final_norm": {"scale": jnp.full(2, value)},
        "head": {"kernel": jnp.full((2, 3), value)},
        "periods": {"slot_0": {"mixer": {"k": jnp.full((layers, 2), value)}}},
    }


def hybrid(periods, tail, value):
    """Units of three layers, and layers left over."""
    slots = {
        f"slot_{s}": {"mixer": {"k": jnp.full((periods, 2), value)}} for s in "012"
    }
    rest = {f"tail_{t}": {"mixer": {"k": jnp.full(2, value)}} for t in range(tail)}
    return {"periods": slots, **rest}


def shares(found):
    """The share of the language model in each layer: it is ones, the task zeros."""
    flat = {name: np.asarray(leaf) for name, leaf in flatten(found).items()}
    slots = [flat[n][:, 0] for n in sorted(flat) if n.startswith("periods")]
    tail = [flat[n][0] for n in sorted(flat) if n.startswith("tail")]
    return [float(x) for x in [*np.stack(slots, axis=1).ravel(), *tail]]


def swapped(make, *sizes, **options):
    return layer_swap(make(*sizes, 0.0), make(*sizes, 1.0), **options)


def test_both_ends_are_from_the_language_model_and_mixed_between():
    found = swapped(stack, 9, bottom=2, top=1, trans_bottom=1, trans_top=2, c=0.25)
    assert shares(found) == [1, 1, 0.25, 0, 0, 0, 0.25, 0.25, 1]
    assert float(found["embedding"]["tokens"][0, 0]) == 1
    assert float(found["head"]["kernel"][0, 0]) == 1
    found = swapped(stack, 9, bottom=2, top=0, head="mean", embed="task")
    assert shares(found) == [1, 1, 0.5, 0, 0, 0, 0, 0, 0]
    outside = {
        n: float(x.ravel()[0]) for n, x in flatten(found).items() if "k" not in n
    }
    assert outside["embedding_norm/scale"] == 0
    assert outside["final_norm/scale"] == 0.5
    # Transitions that meet, and that would pass the other end.
    assert shares(swapped(stack, 4, bottom=1, top=1)) == [1, 0.5, 0.5, 1]
    assert shares(swapped(stack, 3, bottom=2, top=1, trans_top=9)) == [1, 1, 1]


def test_units_are_swapped_whole():
    found = swapped(hybrid, 3, 2, bottom=1, top=1, trans_bottom=1, trans_top=0)
    assert shares(found) == [1, 1, 1, 0.5, 0.5, 0.5, 0, 0, 0, 1, 1]
    assert shares(swapped(hybrid, 2, 0, bottom=1, top=0, trans_bottom=0)) == [
        *[1, 1, 1],
        *[0, 0, 0],
    ]
    assert unit_of(hybrid(2, 1, 0.0)).tolist() == [0, 0, 0, 1, 1, 1, 2]
    # A model shorter than its unit is one unit.
    short = {f"tail_{t}": {"mixer": {"k": jnp.zeros(2)}} for t in range(2)}
    assert unit_of(short).tolist() == [0, 0]


def test_published_sizes_are_scaled_to_the_units_of_a_model():
    def sizes(layers):
        return tuple(default_sizes(stack(layers, 0.0)).values())

    assert [sizes(n) for n in (32, 64, 16, 4, 2)] == [
        (5, 2),
        (10, 4),
        (2, 1),
        (1, 1),
        (1, 1),
    ]
    assert default_sizes(hybrid(8, 2, 0.0)) == {"bottom": 1, "top": 1}


def test_the_ends_are_the_models_bit_for_bit_and_sharding_stays():
    task, lang = grid(0), grid(1)
    place = NamedSharding(make_mesh(1, 4), P("fsdp"))

    def spread(tree):
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    def equal(found, expected):
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    equal(layer_swap(task, lang, bottom=0, top=0), task)
    equal(layer_swap(task, lang, bottom=3, top=2), lang)
    alone = layer_swap(task, lang, bottom=1, top=1)
    swap = jit(lambda task, lang: layer_swap(task, lang, bottom=1, top=1))
    found = swap(spread(task), spread(lang))
    equal(found, alone)
    assert len(found["embedding"]["tokens"].sharding.device_set) == 4
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), task)
    assert {
        x.dtype for x in jax.tree.leaves(layer_swap(half, half, bottom=1, top=1))
    } == {jnp.dtype(jnp.bfloat16)}


def test_sizes_and_trees_that_do_not_fit_are_refused():
    task = stack(4, 0.0)
    with pytest.raises(ValueError, match="bottom = 3 and top = 2 units of 4"):
        swap_weights(task, bottom=3, top=2)
    with pytest.raises(ValueError, match=r"c = 2.0, expected in \[0, 1\]"):
        swap_weights(task, bottom=1, top=1, c=2.0)
    with pytest.raises(ValueError, match="tree 2 differs"):
        layer_swap(task, stack(5, 0.0), bottom=1, top=1)
    with pytest.raises(ValueError, match="the model has 4"):
        blend_layers(task, task, np.zeros(3, np.float32))
