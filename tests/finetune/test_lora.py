from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_zoo import PLAIN
from model_zoo import configs, forward, random_ids, random_params
from oracle_finetune import Toy, random_texts

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like, llama_like
from lt_mia_jax.models.projection import Adapter, adapted
from lt_mia_jax.trees import flatten

CONFIG = LoraConfig(rank=4, alpha=6.0, targets=("*/mixer/kernel", "head/kernel"))
MODEL = Toy()


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(1))


def random_adapters(params, key):
    adapters = lora.init(key, params, CONFIG)
    return jax.tree.map(
        lambda x: jax.random.normal(jax.random.fold_in(key, x.size), x.shape), adapters
    )


def test_fresh_adapters_change_nothing(params, key):
    adapters = lora.init(key, params, CONFIG)
    assert set(adapters) == {"layers/mixer/kernel", "head/kernel"}
    merged = lora.merge(params, adapters, CONFIG.scale)
    ids = random_texts(3).input_ids
    np.testing.assert_array_equal(MODEL.apply(merged, ids), MODEL.apply(params, ids))
    assert all(float(jnp.abs(a).min()) > 0 for a, _ in adapters.values())


def test_merge_equals_its_definition_layer_by_layer(params, key):
    adapters = random_adapters(params, key)
    merged = flatten(lora.merge(params, adapters, CONFIG.scale))
    before = flatten(params)
    for layer in range(2):
        a, b = (np.float64(x[layer]) for x in adapters["layers/mixer/kernel"])
        expected = np.float64(before["layers/mixer/kernel"][layer]) + 1.5 * a @ b
        np.testing.assert_allclose(
            merged["layers/mixer/kernel"][layer], expected, rtol=1e-5, atol=1e-5
        )
    for name in set(before) - set(adapters):
        assert merged[name] is before[name]


def test_merged_weights_act_like_a_side_branch(params, key):
    adapters = {
        k: v for k, v in random_adapters(params, key).items() if k == "head/kernel"
    }
    a, b = adapters["head/kernel"]
    x = jax.random.normal(key, (5, 16))
    merged = lora.merge(params, adapters, CONFIG.scale)
    kernel = params["head"]["kernel"]
    np.testing.assert_allclose(
        x @ merged["head"]["kernel"],
        x @ kernel + CONFIG.scale * ((x @ a) @ b),
        rtol=1e-4,
        atol=1e-4,
    )


def test_layers_get_different_adapters(params, key):
    a, _ = lora.init(key, params, CONFIG)["layers/mixer/kernel"]
    assert not np.allclose(a[0], a[1])


def some_adapters(params, config, key):
    fresh = lora.init(key, params, config)
    rng = np.random.default_rng(0)
    return {
        name: (a, jnp.asarray(0.3 * rng.normal(size=b.shape), jnp.float32))
        for name, (a, b) in fresh.items()
    }


@pytest.mark.parametrize("name", sorted(PLAIN.values()))
def test_every_family_has_targets_and_merging_is_the_same_function(name, key):
    model = LanguageModel(configs()[name])
    params, ids = random_params(model.config), random_ids()
    config = LoraConfig(rank=2, alpha=3.0)
    plain = forward(model, params, ids)
    fresh = {"base": params, "adapters": lora.init(key, params, config)}
    apply = jax.jit(lora.Adapted(model, config.scale).apply)
    np.testing.assert_allclose(apply(fresh, ids), plain, atol=1e-6)
    adapters = some_adapters(params, config, key)
    expected = forward(model, lora.merge(params, adapters, config.scale), ids)
    assert np.abs(expected - plain).max() > 0.05
    found = apply({"base": params, "adapters": adapters}, ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mamba", "rwkv", "recurrent_gemma"])
def test_gradients_beside_and_inside_the_kernel_agree(name, key):
    model = LanguageModel(configs()[name])
    params, ids = random_params(model.config), random_ids(shape=(2, 4))
    config = LoraConfig(rank=2, alpha=3.0)
    adapters = some_adapters(params, config, key)

    def beside(adapters):
        both = {"base": params, "adapters": adapters}
        return lora.Adapted(model, config.scale).apply(both, ids)

    def inside(adapters):
        return model.apply(lora.merge(params, adapters, config.scale), ids)

    first, second = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum()))(adapters)
        for f in (beside, inside)
    )
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        scale = np.abs(other).max()
        assert scale > 0
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-4)


def test_adapter_dropout_follows_the_key_and_keeps_the_mean(key):
    """One linear map: with a zero base the output is the adapter's alone."""
    x = jax.random.normal(key, (6, 5))
    a, b = (
        jax.random.normal(jax.random.key(i), s) for i, s in ((1, (5, 3)), (2, (3, 4)))
    )

    def run(key):
        return adapted(x, Adapter(a, b, 0.25, key))

    runs = jax.vmap(run)(jax.random.split(key, 4000))
    expected = (np.float64(x) @ np.float64(a)) @ np.float64(b)
    spread = runs.std(axis=0) / np.sqrt(len(runs))
    assert (np.abs(runs.mean(axis=0) - expected) <= 5 * spread + 1e-6).all()
    # Tokens have masks of their own: equal rows come out different.
    same = adapted(jnp.ones((50, 5)), Adapter(a, b, 0.5, key))
    assert len(np.unique(np.round(same, 4), axis=0)) > 10


def test_dropout_acts_in_training_alone(key):
    model = LanguageModel(configs()["llama"])
    params, ids = random_params(model.config), random_ids()
    adapters = some_adapters(params, LoraConfig(rank=2), key)
    run = jax.jit(partial(model.apply, adapter_dropout=0.5))
    first, second = jax.random.split(key)
    without = run(params, ids, adapters=adapters)
    np.testing.assert_allclose(
        without, model.apply(params, ids, adapters=adapters), atol=1e-5
    )
    once = run(params, ids, adapters=adapters, dropout_key=first)
    assert (once != without).any()
    assert (once != run(params, ids, adapters=adapters, dropout_key=second)).any()


def test_target_and_reference_share_the_base(key):
    """The scorer of an adapted target beside its base holds one copy of the base."""
    model = LanguageModel(gpt2_like(512, 64, 4, 2, 12))
    params = jax.device_put(model.init(key))
    adapters = lora.init(key, params, LoraConfig(rank=2))
    target = {"base": params, "adapters": adapters}
    compiled = (
        jax.jit(
            lambda target, reference, ids: (
                lora.Adapted(model, 1.0).apply(target, ids),
                model.apply(reference, ids),
            )
        )
        .lower(target, params, random_ids())
        .compile()
    )
    before = {id(x) for x in jax.live_arrays()}
    compiled(target, params, random_ids())
    kept = [x for x in jax.live_arrays() if id(x) not in before]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (kept, params)]
    assert sizes[0] < sizes[1] / 4
    pointers = [
        {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
        for tree in (target["base"], params)
    ]
    assert pointers[0] == pointers[1]


@pytest.mark.parametrize(
    "name", ["novel/kernel", "embedding/tokens", "final_norm/scale"]
)
def test_adapters_that_fit_nothing_are_refused(name, key):
    model = LanguageModel(configs()["llama"])
    params = random_params(model.config)
    pair = (jnp.zeros((23, 2)), jnp.zeros((2, 16)))
    with pytest.raises(InputError, match=f"{name} is no kernel"):
        model.apply(params, random_ids(), adapters={name: pair})
    path = "periods/slot_0/mixer/query/kernel"
    with pytest.raises(InputError, match=r"its adapter \[23, 2\]"):
        model.apply(params, random_ids(), adapters={path: pair})


@pytest.mark.parametrize("preset", [gpt2_like, llama_like])
def test_default_targets_are_the_kernels_of_every_layer(preset, key):
    shapes = LanguageModel(preset(32, 16, 2, 2, 12)).shapes()
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    adapters = lora.init(key, zeros, LoraConfig(rank=2))
    expected = {n for n in flatten(shapes) if n.startswith("periods") and "kernel" in n}
    assert set(adapters) == expected
    assert all(a.shape[0] == b.shape[0] == 2 for a, b in adapters.values())


def test_globs_must_match_matrices(params, key):
    with pytest.raises(InputError, match="nothing_here"):
        lora.init(key, params, LoraConfig(targets=("*/nothing_here",)))
    vector = {"norm": {"scale": jnp.ones(3)}}
    with pytest.raises(InputError, match="norm/scale"):
        lora.init(key, vector, LoraConfig(targets=("*/scale",)))


def test_all_bad_values_are_named():
    with pytest.raises(InputError, match=r"rank = 0.*dropout = 1, "):
        LoraConfig(rank=0, dropout=1.0)
