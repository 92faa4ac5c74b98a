"""Scanned periods and unrolled tails against a plain loop over layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest
from model_zoo import configs, forward, random_ids, random_params

from lt_mia_jax.models import ExecutionConfig, LanguageModel
from lt_mia_jax.models.config import Dropout, Residual
from lt_mia_jax.models.decoder import Block
from lt_mia_jax.models.execution import CallConfig, Place


def two_kinds(layers):
    """Blocks that differ in residual and activation, so that order matters."""
    config = configs()["neox"]
    first = config.pattern[0]
    second = dataclasses.replace(
        first,
        residual=Residual.SEQUENTIAL,
        feed_forward=dataclasses.replace(first.feed_forward, activation="relu"),
    )
    return dataclasses.replace(config, pattern=(first, second), layers=layers)


@pytest.mark.parametrize("layers", [1, 4, 5])
def test_periods_and_tail_equal_a_loop_over_layers(layers):
    config = two_kinds(layers)
    params, ids = random_params(config), random_ids()
    parts = {"periods"} if layers > 1 else set()
    parts |= {"tail_0"} if layers % 2 else set()
    assert set(params) == {"embedding", "final_norm", "head"} | parts
    found = forward(LanguageModel(config), params, ids)
    np.testing.assert_allclose(found, oracle.logits(config, params, ids), atol=1e-4)


def test_stacked_rows_are_layers_in_order():
    """One block applied by hand to each row of the stack, and nothing else."""
    config = two_kinds(4)
    params = random_params(config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    expected = np.asarray(x, np.float64)
    found = x
    for layer in range(4):
        block = config.pattern[layer % 2]
        rows = oracle.layer_params(config, params, layer)
        context = CallConfig(model=config, execution=ExecutionConfig())
        apply = jax.jit(Block(block, context).apply)
        place = Place(jnp.arange(5), jnp.asarray(layer + 1))
        found = apply({"params": rows}, found, place)
        expected = oracle.block(expected, block, rows)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_execution_changes_neither_loss_nor_gradient(key):
    config = dataclasses.replace(configs()["llama"], dropout=Dropout(residual=0.2))
    params, ids = random_params(config), random_ids()

    def loss(execution):
        model = LanguageModel(config, execution)
        return jax.jit(
            jax.value_and_grad(
                lambda p: model.apply(p, ids, dropout_key=key)[..., 0].sum()
            )
        )(params)

    plain = loss(ExecutionConfig())
    for execution in (ExecutionConfig(remat=True), ExecutionConfig(unroll=2)):
        pairs = zip(
            jax.tree.leaves(plain), jax.tree.leaves(loss(execution)), strict=True
        )
        for a, b in pairs:
            scale = float(np.abs(a).max()) + 1e-6
            np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)
