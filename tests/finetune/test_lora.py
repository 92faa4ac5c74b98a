import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_finetune import Toy, random_texts

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like, llama_like
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


def test_dropout_drops_inputs_and_keeps_the_mean(params, key):
    adapters = random_adapters(params, key)
    assert lora.drop(adapters, 0.0, key) is adapters
    a, b = adapters["head/kernel"]
    x = jax.random.normal(key, (5, 16))
    total = 0.0
    for i in range(400):
        dropped, same = lora.drop(adapters, 0.25, jax.random.key(i))["head/kernel"]
        kept = np.abs(np.asarray(dropped)).sum(axis=1) > 0
        if i < 20:
            # Zeroed rows of A are the same as zeroed inputs.
            expected = (np.asarray(x) * kept / 0.75) @ np.asarray(a)
            np.testing.assert_allclose(x @ dropped, expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(same, b)
        total = total + kept / 400
    np.testing.assert_allclose(total, 0.75, atol=0.1)


def test_layers_get_different_adapters_and_masks(params, key):
    a, _ = lora.init(key, params, CONFIG)["layers/mixer/kernel"]
    assert not np.allclose(a[0], a[1])
    dropped, _ = lora.drop({"layers/mixer/kernel": (a, a)}, 0.5, key)[
        "layers/mixer/kernel"
    ]
    kept = np.abs(np.asarray(dropped)).sum(axis=2) > 0
    assert (kept[0] != kept[1]).any()


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
    with pytest.raises(InputError, match=r"rank = 0.*dropout = 1.0.*no targets"):
        LoraConfig(rank=0, dropout=1.0, targets=())
