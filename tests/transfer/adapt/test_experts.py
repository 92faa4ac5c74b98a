import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, random_ids, random_params
from quick_compile import jit

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.adapt.experts import Aggregator, Episode, adapt, outer_loss
from lt_mia_jax.transfer.adapt.features import TextFeatures
from lt_mia_jax.trees import flatten

E, B, D, HEADS = 4, 5, 6, 2


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


EXPERTS, AGGREGATOR = numbers(E, B, D), Aggregator(heads=HEADS)


def aggregator_params():
    params = jit(AGGREGATOR.init)(jax.random.key(0), EXPERTS)["params"]
    leaves = jax.tree.leaves(params)
    noisy = [x + 0.1 * numbers(*x.shape, seed=i) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(params), noisy)


def aggregate(params, keep=None, experts=EXPERTS):
    return jit(AGGREGATOR.apply)({"params": params}, experts, keep)


def norm(x, p):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(
        x.var(axis=-1, keepdims=True) + 1e-6
    )
    return x * p["scale"] + p["bias"]


def oracle(params, experts):
    """One text, all experts given: (E, D) to (D,), head by head in float64."""
    p = jax.tree.map(np.float64, params)
    x, a = np.float64(experts), p["attention"]
    n, mixed = norm(x, p["norm"]), 0.0
    for head in range(HEADS):
        q, k, v = (
            n @ a[part]["kernel"][:, head] + a[part]["bias"][head]
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.T / np.sqrt(D / HEADS))
        weights = scores / scores.sum(axis=1, keepdims=True)
        mixed = mixed + weights @ v @ a["out"]["kernel"][head]
    x = x + mixed + a["out"]["bias"]
    up = norm(x, p["feed_forward_norm"]) @ p["up"]["kernel"] + p["up"]["bias"]
    gelu = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return (x + gelu @ p["down"]["kernel"] + p["down"]["bias"]).mean(axis=0)


def test_the_aggregator_equals_its_definition():
    params = aggregator_params()
    expected = [oracle(params, EXPERTS[:, b]) for b in range(B)]
    np.testing.assert_allclose(aggregate(params), expected, rtol=1e-4, atol=1e-5)


def test_experts_that_are_left_out_do_not_matter():
    params = aggregator_params()
    keep = np.array([True, False, True, True])
    expected = [oracle(params, EXPERTS[keep, b]) for b in range(B)]
    found = aggregate(params, keep)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    other = EXPERTS.copy()
    other[1] = 100.0
    assert (aggregate(params, keep, other) == found).all()


def test_experts_may_be_left_out_text_by_text():
    params = aggregator_params()
    keep = np.random.default_rng(1).random((E, B)) < 0.6
    keep[0] = True
    expected = [oracle(params, EXPERTS[keep[:, b], b]) for b in range(B)]
    np.testing.assert_allclose(aggregate(params, keep), expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_experts_does_not_matter():
    params = aggregator_params()
    turned = aggregate(params, experts=EXPERTS[[2, 0, 3, 1]])
    np.testing.assert_allclose(turned, aggregate(params), rtol=1e-4, atol=1e-5)


def linear(params, x):
    return x @ params["w"]


X, TARGET, W = numbers(B, 3), numbers(B, D, seed=1), numbers(3, D, seed=2)


def test_the_step_equals_its_closed_form():
    found = adapt(
        {"w": jnp.asarray(W)}, X, jnp.asarray(TARGET), features=linear, rate=0.3
    )
    x, y, w = np.float64(X), np.float64(TARGET), np.float64(W)
    expected = w - 0.3 * 2 / y.size * x.T @ (x @ w - y)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rate_zero_changes_no_bit(dtype):
    params = {"w": jnp.asarray(W, dtype)}
    found = jax.jit(
        lambda p: adapt(p, X, jnp.asarray(TARGET), features=linear, rate=0.0)
    )(params)
    assert found["w"].dtype == dtype
    assert (found["w"] == params["w"]).all()


def episode():
    return Episode(
        support=jnp.asarray(X),
        experts=jnp.asarray(EXPERTS),
        keep=jnp.array([True, True, False, True]),
        query=jnp.asarray(numbers(8, 3, seed=3)),
        labels=jnp.asarray(np.random.default_rng(4).integers(0, 2, 8)),
    )


def test_the_outer_gradient_passes_through_the_step():
    """Against finite differences of the closed form of step and loss, in float64."""
    head, data = nn.Dense(2), episode()
    params = {
        "student": {"w": jnp.asarray(W)},
        "aggregator": aggregator_params(),
        "head": jit(head.init)(jax.random.key(1), TARGET)["params"],
    }

    def loss(p, rate=2.0):
        return outer_loss(
            p, data, features=linear, aggregator=AGGREGATOR, head=head, rate=rate
        )

    value, gradient = jit(jax.value_and_grad(loss))(params)
    x, query = np.float64(data.support), np.float64(data.query)
    kept = np.asarray(data.keep)
    target = np.stack(
        [oracle(params["aggregator"], EXPERTS[kept, b]) for b in range(B)]
    )
    kernel, bias = (np.float64(params["head"][n]) for n in ("kernel", "bias"))

    def slow(w, target):
        w = w - 2.0 * 2 / target.size * x.T @ (x @ w - target)
        z = query @ w @ kernel + bias
        picked = z[np.arange(8), np.asarray(data.labels)]
        return np.mean(np.log(np.exp(z).sum(axis=1)) - picked)

    w = np.float64(W)
    np.testing.assert_allclose(value, slow(w, target), rtol=1e-4)
    for i, j in [(0, 0), (1, 3), (2, 5)]:
        step = np.zeros_like(w)
        step[i, j] = 1e-5
        expected = (slow(w + step, target) - slow(w - step, target)) / 2e-5
        found = gradient["student"]["w"][i, j]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    # The bias of `down` shifts every target by itself: the aggregator learns.
    for j in (0, 4):
        step = 1e-5 * np.eye(D)[j]
        expected = (slow(w, target + step) - slow(w, target - step)) / 2e-5
        found = gradient["aggregator"]["down"]["bias"][j]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.abs(gradient["head"]["kernel"]).max() > 0
    still = jit(jax.grad(lambda p: loss(p, 0.0)))(params)["aggregator"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(still))


def test_a_language_model_takes_the_step():
    config = configs()["gpt2"]
    model, params = LanguageModel(config), random_params(config)
    features, ids = TextFeatures(model), random_ids()
    target = jnp.asarray(numbers(2, config.width, seed=6))

    @jit
    def moved(p):
        new = adapt(p, ids, target, features=features, rate=0.005)
        gap = [jnp.square(features(q, ids) - target).mean() for q in (p, new)]
        return gap, jax.grad(
            lambda q: features(
                adapt(q, ids, target, features=features, rate=0.005), ids
            ).sum()
        )(p)

    (before, after), gradient = moved(jax.tree.map(jnp.asarray, params))
    assert after < before
    assert all(np.isfinite(leaf).all() for leaf in flatten(gradient).values())
