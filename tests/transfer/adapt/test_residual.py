import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_zoo import configs, random_ids, random_params
from quick_compile import jit

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.adapt.features import TextFeatures
from lt_mia_jax.transfer.adapt.residual import Refine, freeze_mask


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cubes(params, x):
    return (x @ params["w"]) ** 3


def tails(params, x):
    return jnp.tanh(x @ params["v"])


X = numbers(7, 4)
FROZEN = ({"w": numbers(4, 5, seed=1)}, {"v": numbers(4, 2, seed=2)})
REFINE = Refine((cubes, tails), residual=nn.Dense(3), head=nn.Dense(6))


def made(refine=REFINE, frozen=FROZEN):
    return jit(refine.init)(jax.random.key(0), X, frozen)["params"]


def test_it_equals_its_definition():
    params = made()
    found = REFINE.apply({"params": params}, X)
    x = np.float64(X)
    h = x @ np.float64(params["residual"]["kernel"]) + np.float64(
        params["residual"]["bias"]
    )
    features = [(x @ FROZEN[0]["w"]) ** 3, np.tanh(x @ FROZEN[1]["v"]), h]
    joined = np.concatenate(features, axis=1)
    head = params["head"]
    expected = joined @ np.float64(head["kernel"]) + np.float64(head["bias"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for number, source in enumerate(FROZEN):
        for name, leaf in source.items():
            assert (params[f"source_{number}"][name] == leaf).all()


def test_sources_get_no_gradient_and_no_step():
    params, y = made(), numbers(7, 6, seed=4)

    def loss(p):
        return jnp.square(REFINE.apply({"params": p}, X) - y).mean()

    mask, gradient = freeze_mask(params), jit(jax.grad(loss))(params)
    for trained, leaf in zip(
        jax.tree.leaves(mask), jax.tree.leaves(gradient), strict=True
    ):
        assert trained == bool((leaf != 0).any())
    # Weight decay, which needs no gradient, passes the mask only.
    tx = optax.masked(optax.adamw(0.1, weight_decay=0.5), mask)
    updates, _ = tx.update(gradient, tx.init(params), params)
    for trained, leaf in zip(
        jax.tree.leaves(mask), jax.tree.leaves(updates), strict=True
    ):
        assert trained == bool((leaf != 0).any())


def test_without_residual_it_is_a_probe_and_without_sources_from_scratch():
    probe = Refine((cubes,), residual=None, head=nn.Dense(2))
    params = made(probe, FROZEN[:1])
    assert sorted(params) == ["head", "source_0"]
    expected = cubes(FROZEN[0], X) @ params["head"]["kernel"]
    np.testing.assert_allclose(
        probe.apply({"params": params}, X), expected, rtol=1e-4, atol=1e-5
    )
    scratch = made(Refine((), residual=nn.Dense(3), head=nn.Dense(2)), ())
    assert sorted(scratch) == ["head", "residual"]
    assert all(jax.tree.leaves(freeze_mask(scratch)))


def test_sources_need_their_parameters():
    with pytest.raises(ValueError, match="`frozen`, the parameters of each source"):
        REFINE.init(jax.random.key(0), X)


def test_a_language_model_is_a_source():
    config = configs()["rwkv-preset"]
    model, params = LanguageModel(config), random_params(config)
    ids = random_ids()
    refine = Refine((TextFeatures(model),), residual=None, head=nn.Dense(2))
    tree = jit(refine.init)(jax.random.key(0), ids, [params])["params"]
    _, taps = jit(lambda p: model.apply(p, ids, capture=(config.layers,)))(params)
    features = np.float64(taps[config.layers]).mean(axis=1)
    expected = features @ np.float64(tree["head"]["kernel"])
    found = jit(lambda p: refine.apply({"params": p}, ids))(tree)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
