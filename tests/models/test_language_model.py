import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest
from family_zoo import PLAIN
from model_zoo import (
    CONTEXT,
    VOCAB,
    configs,
    forward,
    random_ids,
    random_params,
    with_block,
)

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import ExecutionConfig, LanguageModel, gpt2_like, llama_like
from lt_mia_jax.models.config import Dropout
from lt_mia_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from lt_mia_jax.trees import flatten, unflatten


@pytest.mark.parametrize("name", configs())
def test_logits_match_the_definition(name):
    config = configs()[name]
    params, ids = random_params(config), random_ids()
    found = forward(LanguageModel(config), params, ids)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle.logits(config, params, ids), atol=1e-4)


@pytest.mark.parametrize("name", sorted(PLAIN.values()))
def test_gradient_reaches_no_later_token(name):
    """Logits at a token move with every earlier embedding and with no later one."""
    config = configs()[name]
    params, token = random_params(config), 4
    ids = np.arange(CONTEXT - 2)[None]  # Every id once: its embedding is its token.

    @jax.jit
    @jax.grad
    def probe(tokens):
        changed = {**params, "embedding": {**params["embedding"], "tokens": tokens}}
        # A tied head also reads the table, at the columns; take one that no token is.
        return LanguageModel(config).apply(changed, ids)[0, token, VOCAB - 1]

    moved = np.abs(probe(jnp.asarray(params["embedding"]["tokens"]))).sum(axis=1)
    assert (moved[: token + 1] > 0).all()
    assert (moved[token + 1 : CONTEXT - 2] == 0).all()


@pytest.mark.parametrize("name", sorted(PLAIN.values()))
def test_padding_on_the_right_changes_nothing(name):
    config = configs()[name]
    params, ids = random_params(config), random_ids(shape=(2, 5))
    apply = partial(forward, LanguageModel(config))
    alone = apply(params, ids)
    for filler in (0, VOCAB - 1):
        padded = np.full((2, CONTEXT), filler, np.int32)
        padded[:, :5] = ids
        np.testing.assert_allclose(apply(params, padded)[:, :5], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mamba", "rwkv", "recurrent_gemma"])
def test_forward_mode_agrees_with_the_gradient(name):
    """The derivative along a direction, by `jvp` and from the reverse pass."""
    config = configs()[name]
    params, ids = random_params(config), random_ids()
    direction = random_params(config, seed=3)

    def loss(params, forward_mode):
        model = LanguageModel(config, ExecutionConfig(forward_mode=forward_mode))
        return jnp.sin(model.apply(params, ids)).mean()

    @jax.jit
    def along(params, direction):
        return jax.jvp(lambda p: loss(p, True), (params,), (direction,))[1]

    gradient = jax.jit(jax.grad(lambda p: loss(p, False)))(params)
    products = jax.tree.map(jnp.vdot, gradient, direction)
    expected = sum(jax.tree.leaves(products))
    np.testing.assert_allclose(along(params, direction), expected, rtol=1e-3)


def test_rows_do_not_see_each_other():
    config = configs()["llama"]
    params, ids = random_params(config), random_ids()
    apply = partial(forward, LanguageModel(config))
    together, alone = apply(params, ids), apply(params, ids[1:])
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)


def test_initial_deviations(key):
    config = gpt2_like(512, 64, 3, 4, 128)
    flat = flatten(LanguageModel(config).init(key))
    small = 0.02 / np.sqrt(2 * 3)
    for name, leaf in flat.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            writes = "output/kernel" in name or "down/kernel" in name
            spread = 4 / np.sqrt(2 * leaf.size)  # of an estimated deviation
            expected = small if writes else 0.02
            assert float(leaf.std()) == pytest.approx(expected, rel=spread), name
    first, second = flat["periods/slot_0/mixer/query/kernel"][:2]
    assert not np.array_equal(first, second)


def test_shapes_are_those_of_init(key):
    model = LanguageModel(configs()["neox"])
    params = model.init(key)
    made = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    promised = jax.tree.map(lambda x: (x.shape, x.dtype), model.shapes())
    assert made == promised
    assert type(params) is dict


def test_param_dtype_is_honored():
    model = LanguageModel(configs()["gpt2"], ExecutionConfig(param_dtype="bfloat16"))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.shapes()))


@pytest.mark.parametrize("part", ["embedding", "attention", "residual"])
def test_dropout_acts_only_with_a_key_and_follows_it(part, key):
    config = dataclasses.replace(configs()["neox"], dropout=Dropout(**{part: 0.5}))
    params, ids = random_params(config), random_ids()
    apply = partial(forward, LanguageModel(config))
    without = forward(LanguageModel(configs()["neox"]), params, ids)
    np.testing.assert_array_equal(apply(params, ids), without)
    first, second = jax.random.split(key)
    once = apply(params, ids, first)
    np.testing.assert_array_equal(once, apply(params, ids, first))
    assert (once != without).any()
    assert (once != apply(params, ids, second)).any()


def test_layers_draw_different_dropout_masks(key):
    """Each of two layers adds a dropped-out constant; one shared mask gives no 1/2."""
    config = with_block(llama_like(16, 16, 2, 4, CONTEXT), feed_forward={"bias": True})
    config = dataclasses.replace(config, dropout=Dropout(residual=0.5))
    flat = flatten(random_params(config, scale=0.0))
    flat["periods/slot_0/feed_forward/down/bias"] = np.ones((2, 16), np.float32)
    flat["head/kernel"] = np.eye(16, dtype=np.float32)
    apply = partial(forward, LanguageModel(config))
    stream = apply(unflatten(flat), np.zeros((4, 8), np.int32), dropout_key=key)
    shares = np.unique(np.round(stream / stream.max(axis=-1, keepdims=True), 4))
    np.testing.assert_array_equal(shares, [0, 0.5, 1])


def test_bfloat16_is_close_and_returns_float32():
    config = configs()["llama"]
    params, ids = random_params(config, scale=0.1), random_ids()
    model = LanguageModel(config, ExecutionConfig(compute_dtype="bfloat16"))
    found = forward(model, params, ids)
    assert found.dtype == jnp.float32
    expected = oracle.logits(config, params, ids)
    # Relative rounding of 2^-9 over about ten roundings in a row.
    np.testing.assert_allclose(found, expected, atol=0.04 * np.abs(expected).max())


def test_four_devices_equal_one():
    config = gpt2_like(VOCAB, 64, 2, 4, CONTEXT)
    params, ids = random_params(config), random_ids(shape=(8, 6))
    model = LanguageModel(config)

    def loss(params, ids):
        return jax.nn.log_softmax(model.apply(params, ids))[..., 0].mean()

    alone = jax.jit(jax.value_and_grad(loss))(params, ids)
    mesh = make_mesh(data=2, fsdp=2)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    split = jax.device_put(ids, batch_sharding(mesh))
    spread = jax.jit(jax.value_and_grad(loss))(placed, split)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_equal_models_share_one_program():
    traces = []

    def forward(model, params, ids):
        traces.append(model)
        return model.apply(params, ids)

    jitted = jax.jit(forward, static_argnums=0)
    for _ in range(2):
        config = configs()["gpt2"]
        jitted(LanguageModel(config), random_params(config), random_ids())
    assert len(traces) == 1


def test_text_longer_than_the_position_table_is_refused():
    config = configs()["gpt2"]
    ids = np.zeros((1, CONTEXT + 1), np.int32)
    with pytest.raises(InputError, match=f"position table has {CONTEXT} rows"):
        LanguageModel(config).apply(random_params(config), ids)


def test_rotary_model_reads_beyond_its_context():
    config = configs()["llama"]
    params, ids = random_params(config), random_ids(shape=(1, CONTEXT + 3))
    found = forward(LanguageModel(config), params, ids)
    np.testing.assert_allclose(found, oracle.logits(config, params, ids), atol=1e-4)


@pytest.mark.parametrize("name", sorted(PLAIN.values()))
def test_captured_streams_are_those_of_the_definition(name):
    config = configs()[name]
    params, ids = random_params(config), random_ids()
    layers = (config.layers, 0, 1)
    run = jax.jit(partial(LanguageModel(config).apply, capture=layers))
    logits, streams = run(params, ids)
    np.testing.assert_allclose(
        logits, forward(LanguageModel(config), params, ids), atol=1e-5
    )
    assert set(streams) == set(layers)
    expected = oracle.streams(config, params, ids)
    for layer in layers:
        scale = np.abs(expected[layer]).max()
        np.testing.assert_allclose(
            streams[layer] / scale, expected[layer] / scale, atol=1e-5
        )


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_does_not_exist_is_refused(layer):
    config = configs()["llama"]
    with pytest.raises(InputError, match=rf"no layer \[{layer}\].*from 0.*to 2"):
        LanguageModel(config).apply(
            random_params(config), random_ids(), capture=(0, layer)
        )


@pytest.mark.parametrize("name", ["llama", "recurrent_gemma", "mamba"])
@pytest.mark.parametrize("layer", [0, 1])
def test_replacing_a_stream_moves_the_rest_of_the_model(name, layer):
    """Running B with A's stream put in at a layer is running A from there on."""
    config = configs()[name]
    model, params = LanguageModel(config), random_params(config)
    a, b = random_ids(seed=1), random_ids(seed=2)
    logits, streams = model.apply(params, a, capture=(layer,))

    def replace(stream, passed):
        return jnp.where(passed == layer, streams[layer], stream)

    found, seen = model.apply(params, b, intervention=replace, capture=(layer,))
    np.testing.assert_array_equal(seen[layer], streams[layer])
    np.testing.assert_allclose(found, logits, atol=1e-5)
    assert np.abs(model.apply(params, b) - logits).max() > 0.1


def test_an_intervention_is_differentiable_and_called_once_a_layer():
    config = configs()["recurrent_gemma"]  # A scanned period and a tail of two.
    model, params, ids = LanguageModel(config), random_params(config), random_ids()

    def loss(factors):
        def scale(stream, layer):
            return stream * factors[layer]

        return model.apply(params, ids, intervention=scale)[0, -1, 0]

    factors = jnp.ones(config.layers + 1)
    gradient = jax.jit(jax.grad(loss))(factors)
    for layer in range(config.layers + 1):
        step = 1e-2 * np.eye(config.layers + 1, dtype=np.float32)[layer]
        slope = (loss(factors + step) - loss(factors - step)) / 2e-2
        np.testing.assert_allclose(gradient[layer], slope, rtol=0.05, atol=2e-3)
