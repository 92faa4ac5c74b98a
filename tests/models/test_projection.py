from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_mia_jax.models.projection import affine, dropout, product


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_affine_over_any_batch_axes(shape):
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        rng.normal(size=shape),
        rng.normal(size=(5, 4)),
        rng.normal(size=4),
    )
    found = affine(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)))
    np.testing.assert_allclose(
        found, np.einsum("...i,io->...o", x, kernel) + bias, atol=1e-5
    )


def test_affine_follows_the_dtype_of_its_input():
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert affine(x, jnp.ones((3, 4)), jnp.ones(4)).dtype == jnp.bfloat16


def test_dropout_zeroes_the_given_share_and_keeps_the_mean(key):
    dropped = dropout(jnp.ones(100_000), 0.25, key)
    share = float((dropped == 0).mean())
    assert share == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 100_000))
    np.testing.assert_allclose(dropped[dropped > 0], 4 / 3, rtol=1e-6)


def test_zero_rate_is_the_identity(key):
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(dropout(x, 0.0, key), x)


def test_dropout_keeps_bfloat16_and_depends_on_the_key(key):
    x = jnp.ones(64, jnp.bfloat16)
    first, second = (dropout(x, 0.5, k) for k in jax.random.split(key))
    assert first.dtype == jnp.bfloat16
    assert (first != second).any()
    np.testing.assert_array_equal(first, dropout(x, 0.5, jax.random.split(key)[0]))


def test_product_and_both_modes_of_its_derivative(key):
    arrays = [
        jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, shape in enumerate([(6, 5), (5, 4), (6, 5), (5, 4), (6, 4)])
    ]
    x, kernel, dx, dk, cotangent = (np.float64(a) for a in arrays)
    np.testing.assert_allclose(product(*arrays[:2]), x @ kernel, atol=1e-5)
    both = partial(product, forward_mode=True)
    _, forward = jax.jvp(both, tuple(arrays[:2]), tuple(arrays[2:4]))
    np.testing.assert_allclose(forward, dx @ kernel + x @ dk, atol=1e-5)
    _, pullback = jax.vjp(product, *arrays[:2])
    back_x, back_kernel = pullback(arrays[4])
    np.testing.assert_allclose(back_x, cotangent @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(back_kernel, x.T @ cotangent, atol=1e-5)


def test_forward_over_reverse_needs_no_switch(key):
    x, kernel, dx, dk = (
        jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, shape in enumerate([(6, 5), (5, 4), (6, 5), (5, 4)])
    )

    def along(forward_mode):
        def loss(x, kernel):
            return jnp.sin(product(x, kernel, forward_mode)).sum()

        return jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (dx, dk))[1]

    for found, expected in zip(along(False), along(True), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_frozen_kernel_costs_no_product():
    """Forward, and one product for the input's gradient: nothing for the kernel's."""
    x, kernel = jnp.ones((6, 5)), jnp.ones((5, 4))

    def products(argnums):
        def loss(x, kernel):
            return jnp.sin(product(x, kernel)).sum()

        return str(jax.make_jaxpr(jax.grad(loss, argnums))(x, kernel)).count("dot_gen")

    assert products(0) == 2
    assert products(1) == 2
    assert products((0, 1)) == 3
