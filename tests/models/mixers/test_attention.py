import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest

from lt_mia_jax.models.mixers.attention import causal_attention, softmax


def make(groups, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, 6, 4, 3), (2, 6, groups, 3), (2, 6, groups, 3)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_matches_definition(groups):
    arrays = make(groups)
    expected = oracle.attend(*map(np.asarray, arrays))
    np.testing.assert_allclose(causal_attention(*arrays), expected, atol=1e-5)


def test_shared_heads_are_repeated_heads():
    query, key, value = make(2)
    repeated = [jnp.repeat(x, 2, axis=2) for x in (key, value)]
    np.testing.assert_allclose(
        causal_attention(query, key, value),
        causal_attention(query, *repeated),
        atol=1e-6,
    )


def test_gradient_is_zero_after_the_probed_token():
    query, key, value = make(2)

    def probe(key, value):
        return causal_attention(query, key, value)[:, 3].sum()

    for gradient in jax.grad(probe, (0, 1))(key, value):
        per_token = jnp.abs(gradient).sum(axis=(0, 2, 3))
        assert (per_token[4:] == 0).all()
        assert (per_token[:4] > 0).all()


def test_first_token_returns_its_own_value():
    query, key, value = make(4)
    found = causal_attention(query, key, value)[:, 0]
    np.testing.assert_allclose(found, value[:, 0], atol=1e-6)


def test_without_causality_each_token_sees_all_real_ones():
    query, key, value = make(2)
    real = np.array([[True] * 6, [True, False, True, True, False, False]])
    found = causal_attention(query, key, value, causal=False, real=jnp.asarray(real))
    # Without an order, the last token of any reordered text sees what every token sees.
    for b, t in np.ndindex(2, 6):
        others = [s for s in range(6) if real[b, s]]
        rows = [np.asarray(x[b : b + 1, others]) for x in (key, value)]
        asked = np.repeat(np.asarray(query[b : b + 1, t : t + 1]), len(others), axis=1)
        expected = oracle.attend(asked, *rows)[0, -1]
        np.testing.assert_allclose(found[b, t], expected, atol=1e-5)
    everything = causal_attention(query, key, value, causal=False)
    np.testing.assert_allclose(everything[0], found[0], atol=1e-6)


def test_huge_scores_stay_finite():
    query, key, value = make(4)
    gradient = jax.grad(lambda q: causal_attention(q, key, value).sum())(1e4 * query)
    assert np.isfinite(gradient).all()


def test_dropout_is_unbiased(key):
    query, keys, value = make(2)
    keys_of_runs = jax.random.split(key, 3000)
    runs = jax.vmap(
        lambda k: causal_attention(query, keys, value, dropout_rate=0.3, dropout_key=k)
    )(keys_of_runs)
    spread = runs.std(axis=0) / np.sqrt(len(runs))
    error = jnp.abs(runs.mean(axis=0) - causal_attention(query, keys, value))
    assert (error <= 5 * spread + 1e-6).all()


def test_softmax_and_both_modes_of_its_derivative():
    rng = np.random.default_rng(0)
    x, direction = (jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in "xd")
    np.testing.assert_allclose(softmax(x), jax.nn.softmax(x), atol=1e-6)
    _, forward = jax.jvp(softmax, (x,), (direction,))
    _, pullback = jax.vjp(softmax, x)
    p = np.exp(np.asarray(x, np.float64))
    p /= p.sum(axis=1, keepdims=True)
    for row in range(3):
        jacobian = np.diag(p[row]) - np.outer(p[row], p[row])
        np.testing.assert_allclose(forward[row], jacobian @ direction[row], atol=1e-6)
        np.testing.assert_allclose(
            pullback(direction)[0][row], jacobian.T @ direction[row], atol=1e-6
        )
