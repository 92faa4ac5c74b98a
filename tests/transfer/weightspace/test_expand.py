"""Genes against layers computed one at a time."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit
from transfer_models import CONFIGS, params_like, tiny_model

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.weightspace.expand import (
    Gene,
    GeneModel,
    depths,
    expand,
    fit_gene,
    init_gene,
)
from lt_mia_jax.trees import flatten, parameter_count, split_layers


def gene_like(name, seed=0):
    """A gene of a model's kinds of layers, of random numbers."""
    model = tiny_model(name)
    count = len(model.config.pattern)
    shared, one = split_layers(params_like(model, seed))
    _, other = split_layers(params_like(model, seed + 1))
    named = [{f"slot_{s}": ls[s] for s in range(count)} for ls in (one, other)]
    return Gene(*named, shared)


def at_depth(model, layers):
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, layers=layers)
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [1, 2, 7])
def test_each_layer_is_a_linear_function_of_its_depth(name, layers):
    gene, model = gene_like(name), at_depth(tiny_model(name), layers)
    params = expand(gene, layers)
    wanted = jax.tree.map(lambda leaf: leaf.shape, model.shapes())
    assert jax.tree.map(lambda leaf: leaf.shape, params) == wanted
    shared, found = split_layers(params)
    assert shared is not gene.shared
    assert len(found) == layers
    for number, layer in enumerate(found):
        slot = f"slot_{number % len(gene.start)}"
        for path, leaf in flatten(layer).items():
            start = np.asarray(flatten(gene.start[slot])[path], np.float64)
            slope = np.asarray(flatten(gene.slope[slot])[path], np.float64)
            np.testing.assert_allclose(leaf, start + number / layers * slope, atol=1e-6)


def test_the_last_layer_stops_short_of_depth_one():
    """The released code has depths l / L; that is kept, and documented."""
    np.testing.assert_allclose(depths(4), [0, 0.25, 0.5, 0.75])
    with pytest.raises(ValueError, match="n_layers = 0"):
        expand(gene_like("llama"), 0)


@pytest.mark.parametrize("name", ["gpt2", "griffin"])
def test_the_gene_of_an_expansion_is_the_gene(name):
    gene = gene_like(name)
    found, r2 = jit(lambda g: fit_gene(expand(g, 8)))(gene)
    assert jax.tree.structure(found) == jax.tree.structure(gene)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gene), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert min(map(float, jax.tree.leaves(r2))) > 1 - 1e-5


def test_the_fit_is_that_of_least_squares():
    params = params_like(tiny_model("gpt2"), 3)
    gene, r2 = fit_gene(params)
    for path, stack in flatten(params["periods"]["slot_0"]).items():
        y = np.asarray(stack, np.float64).reshape(4, -1)
        slope, start = np.polyfit([0, 0.25, 0.5, 0.75], y, 1)
        found = [flatten(t["slot_0"])[path] for t in (gene.start, gene.slope)]
        np.testing.assert_allclose(np.ravel(found[0]), start, atol=1e-5)
        np.testing.assert_allclose(np.ravel(found[1]), slope, atol=1e-5)
        line = start + np.array([[0], [0.25], [0.5], [0.75]]) * slope
        explained = 1 - ((y - line) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        assert float(flatten(r2["slot_0"])[path]) == pytest.approx(explained, abs=1e-5)


def test_a_slot_with_one_layer_has_no_slope():
    model = at_depth(tiny_model("griffin"), 3)
    params = params_like(model, 0)
    gene, r2 = jit(fit_gene)(params)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gene.slope))
    assert set(map(float, jax.tree.leaves(r2))) == {1.0}
    for a, b in zip(
        jax.tree.leaves(expand(gene, 3)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_stored_numbers_are_two_blocks_of_any_depth():
    one = LanguageModel(dataclasses.replace(CONFIGS["llama"], layers=1)).shapes()
    block = parameter_count(one["periods"])
    for layers in (2, 8):
        shapes = at_depth(tiny_model("llama"), layers).shapes()
        gene, _ = jax.eval_shape(fit_gene, shapes)
        assert parameter_count((gene.start, gene.slope)) == 2 * block


def test_gradients_reach_the_gene_through_every_layer():
    """By the chain rule: sums of the layers' gradients, weighted by 1 and by depth."""
    model, gene = tiny_model("gpt2"), gene_like("gpt2")
    ids = jnp.array([[3, 1, 4, 1, 5]])

    def loss(model, params):
        return jnp.square(model.apply(params, ids)).mean()

    found = jit(jax.grad(lambda g: loss(GeneModel(model), g)))(gene)
    layers = jit(jax.grad(lambda p: loss(model, p)))(expand(gene, 4))
    for path, stack in flatten(layers["periods"]["slot_0"]).items():
        weights = {"start": np.ones(4), "slope": np.arange(4) / 4}
        for part, weight in weights.items():
            expected = np.tensordot(weight, np.asarray(stack), axes=1)
            gradient = flatten(getattr(found, part)["slot_0"])[path]
            np.testing.assert_allclose(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_new_gene_fits_the_model_and_only_matrices_change_with_depth():
    model = at_depth(tiny_model("rwkv"), 1)
    gene = jit(partial(init_gene, model=model))(jax.random.key(0))
    wanted = jax.tree.map(lambda leaf: leaf.shape, model.shapes())
    assert jax.tree.map(lambda leaf: leaf.shape, expand(gene, 1)) == wanted
    moving = {p for p, x in flatten(gene.slope).items() if np.asarray(x).any()}
    assert "slot_0/mixer/key/kernel" in moving
    assert not any(
        "norm" in p or p.endswith(("bias", "bonus", "decay")) for p in moving
    )
    kernel = np.asarray(flatten(gene.slope)["slot_0/feed_forward/key/kernel"])
    assert 0.01 < kernel.std() < 0.02
    assert np.abs(kernel).max() <= 0.04 + 1e-6
