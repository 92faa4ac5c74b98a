import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_classifier as oracle
import pytest

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.classifier import ClassifierConfig
from lt_mia_jax.attacks.learned.classifier_config import BLOCKS
from lt_mia_jax.errors import InputError
from lt_mia_jax.features import lt_mia_features
from lt_mia_jax.features.layout import FeatureLayout

MLP_NAMES = ["mlp.0", "mlp.3", "mlp.6"]
B, T, C, D, FF = 5, 12, 28, 16, 24


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(T)[None] < np.array([T - 1, 7, 3, 1, 9])[:, None]
    features = rng.normal(size=(B, T, C)).astype(np.float32) * mask[..., None]
    return features, mask


def _states():
    """Torch-named weights, the oracle's logits and heads, by architecture."""
    rng = np.random.default_rng(1)
    features, mask = _batch()
    flat = features.reshape(B, -1)
    make = functools.partial(oracle.random_state, rng)
    state = make(oracle.transformer_shapes(C, D, FF, 2))
    yield (
        "transformer",
        state,
        oracle.transformer(state, features, mask, heads=4, layers=2),
    )
    state = make(oracle.pooled_shapes(C, D, FF, 2))
    yield (
        "pooled_transformer",
        state,
        oracle.pooled_transformer(state, features, mask, layers=2),
    )
    state = make(oracle.perceptron_shapes(["linear"], (C * T, 1)))
    yield "lr", state, oracle.perceptron(state, flat, ["linear"])
    state = make(oracle.perceptron_shapes(MLP_NAMES, (C * T, 9, 5, 1)))
    yield "mlp", state, oracle.perceptron(state, flat, MLP_NAMES)
    state = make(oracle.perceptron_shapes(MLP_NAMES, (C, 9, 5, 1)))
    mean = oracle.masked_mean(features, mask)
    yield "mean_mlp", state, oracle.perceptron(state, mean, MLP_NAMES)


STATES = {name: (state, logits) for name, state, logits in _states()}


SCORE = jax.jit(classifier.apply, static_argnums=0)  # one program instead of fifty


def _params(architecture="transformer"):
    _, params = classifier.from_torch_state(STATES[architecture][0], heads=4, length=T)
    return jax.tree.map(jnp.asarray, params)


def _small(architecture="transformer", **changes):
    sizes = {"inputs": C, "length": T, "width": D, "heads": 4, "feed_forward": FF}
    return ClassifierConfig(
        **{"architecture": architecture, **sizes, "hidden": (9, 5), **changes}
    )


def test_golden_logits(golden):
    saved = np.load(golden / "classifier_2layer.npz")
    state = {k.removeprefix("sd/"): saved[k] for k in saved if k.startswith("sd/")}
    config, params = classifier.from_torch_state(state, heads=int(saved["nhead"]))
    logits = SCORE(config, params, saved["features"], saved["mask"])
    np.testing.assert_allclose(logits, saved["logits"], atol=1e-5, rtol=0)
    assert config == ClassifierConfig()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 827_906


@pytest.mark.parametrize("architecture", STATES)
def test_matches_the_oracle(architecture):
    state, expected = STATES[architecture]
    config, params = classifier.from_torch_state(state, heads=4, length=T)
    assert config.architecture == architecture
    logits = SCORE(config, params, *_batch())
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", STATES)
def test_init_has_the_shapes_of_the_converted_weights(architecture, key):
    config, params = classifier.from_torch_state(
        STATES[architecture][0], heads=4, length=T
    )
    ours = jax.eval_shape(functools.partial(classifier.init, config), key)
    ours = jax.tree.map(jnp.shape, ours)
    assert ours == jax.tree.map(np.shape, params)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("transformer", 827_906),
        ("lr", 19_713),
        ("mlp", 5_079_553),
        ("mean_mlp", 72_705),
    ],
)
def test_published_parameter_counts(architecture, count, key):
    config = ClassifierConfig(architecture=architecture)
    shapes = jax.eval_shape(functools.partial(classifier.init, config), key)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_four_layers_have_the_published_count(key):
    config = ClassifierConfig(layers=4)
    shapes = jax.eval_shape(functools.partial(classifier.init, config), key)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_569_794


def test_conversion_lists_every_stray_and_missing_key():
    state = dict(STATES["transformer"][0])
    del state["cls.0.bias"], state["encoder.layers.1.linear1.weight"]
    state["extra"] = state["spare"] = np.zeros(1)
    with pytest.raises(InputError) as caught:
        classifier.from_torch_state(state, heads=4)
    for name in ("cls.0.bias", "encoder.layers.1.linear1.weight", "extra", "spare"):
        assert name in str(caught.value)


def test_unknown_weights_are_refused():
    with pytest.raises(InputError, match="unknown classifier weights"):
        classifier.from_torch_state({"lstm.weight": np.zeros((2, 2))})


@pytest.mark.parametrize("architecture", STATES)
def test_values_at_masked_steps_do_not_matter(architecture):
    config = _small(architecture)
    params = _params(architecture)
    features, mask = _batch()
    dirty = np.where(mask[..., None], features, np.nan).astype(np.float32)
    np.testing.assert_array_equal(
        SCORE(config, params, features, mask),
        SCORE(config, params, dirty, mask),
    )


def test_padding_does_not_matter():
    config = _small()
    params = _params()
    features, mask = _batch()
    longer = np.pad(features, ((0, 0), (0, 20), (0, 0)))
    np.testing.assert_allclose(
        SCORE(config, params, features, mask),
        SCORE(config, params, longer, np.pad(mask, ((0, 0), (0, 20)))),
        atol=1e-6,
    )


@pytest.mark.parametrize("architecture", STATES)
def test_a_row_without_steps_is_nan_and_harms_no_gradient(architecture):
    config = _small(architecture)
    params = _params(architecture)
    features, mask = _batch()
    broken = mask.copy()
    broken[2] = False
    others = np.delete(np.arange(B), 2)

    def total(params, mask, rows):
        logits = classifier.apply(config, params, features, mask)
        return jnp.sum(jnp.where(rows, logits, 0) ** 2), logits

    weights = np.isin(np.arange(B), others)
    gradient = jax.jit(jax.grad(total, has_aux=True))
    with_empty, logits = gradient(params, broken, weights)
    without, expected = gradient(params, mask, weights)
    assert np.isnan(logits[2])
    np.testing.assert_array_equal(logits[others], expected[others])
    for a, b in zip(jax.tree.leaves(with_empty), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_dropout_follows_its_key_alone(key):
    config = _small(dropout=0.3)
    params = _params()
    apply = jax.jit(functools.partial(classifier.apply, config, params))
    first, again, other = (
        apply(*_batch(), dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    sure = apply(*_batch())
    assert (np.abs(first - other) > 1e-4).all()
    assert (np.abs(first - sure) > 1e-4).all()
    assert classifier._make_dropout(0.0, key)(sure, 0) is sure


@pytest.mark.parametrize("width", [64, 65])
@pytest.mark.parametrize("rate", [0.05, 0.013])
def test_dropout_rate_and_scale(rate, width, key):
    """0.05 is 13/256 well enough; 0.013 needs a finer grid."""
    drop = classifier._make_dropout(rate, key)
    out = np.asarray(drop(jnp.ones((400, width)), 3))
    # 25,600 draws: five standard errors.
    assert abs((out == 0).mean() - rate) < 5 * np.sqrt(rate / out.size)
    assert abs(out.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / out.size)
    kept = out[out > 0]
    assert kept.min() == kept.max()
    assert abs((1 - 1 / kept[0]) / rate - 1) < 0.02
    # Neighbors share a random word but not a decision.
    for lag in (1, 2, 3):
        pairs = (out[:, lag:] == 0) & (out[:, :-lag] == 0)
        assert abs(pairs.mean() - rate**2) < 5 * np.sqrt(rate**2 / pairs.size)


def test_initial_values_follow_the_original(key):
    config = ClassifierConfig(width=64, heads=4, feed_forward=192, layers=3)
    params = classifier.init(config, key)
    layers = params["layers"]
    for leaf in jax.tree.leaves(layers):
        np.testing.assert_array_equal(leaf[0], leaf[2])
    for kernel, bound in (
        (params["proj"]["kernel"], 1 / np.sqrt(154)),
        (params["proj"]["bias"], 1 / np.sqrt(154)),
        (layers["up"]["kernel"], 1 / np.sqrt(64)),
        (layers["down"]["bias"], 1 / np.sqrt(192)),
        (layers["qkv"]["kernel"], np.sqrt(6 / (64 + 192))),
        (layers["output"]["kernel"], 1 / np.sqrt(64)),
    ):
        values = np.asarray(kernel)
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
        # A uniform distribution on +-bound has deviation bound / sqrt 3.
        if values.size > 1000:
            np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.05)
    assert not layers["qkv"]["bias"].any()
    assert not layers["output"]["bias"].any()


def test_standardizing_equals_scaling_the_features_first():
    plain, scaled = _small(), _small(standardise=True)
    params = _params()
    rng = np.random.default_rng(3)
    params["input_mean"] = jnp.asarray(rng.normal(size=C), jnp.float32)
    params["input_scale"] = jnp.asarray(rng.uniform(0.5, 2, size=C), jnp.float32)
    features, mask = _batch()
    by_hand = (features - np.asarray(params["input_mean"])[None, None]) / np.asarray(
        params["input_scale"]
    )[None, None]
    trained, constants = classifier.split_constants(params)
    assert sorted(constants) == ["input_mean", "input_scale"]
    np.testing.assert_allclose(
        SCORE(scaled, params, features, mask),
        SCORE(plain, trained, by_hand.astype(np.float32), mask),
        atol=1e-6,
    )


SEEN = [*range(4), *range(18, 28)]
"""Of 7 x 2 + 14 columns those of the blocks truth, loss and text."""


@pytest.mark.parametrize("architecture", STATES)
def test_hidden_blocks_are_as_if_they_were_not_there(architecture, key):
    config = _small(architecture, blocks=("text", "truth", "loss"), standardise=True)
    narrow = _small(architecture, inputs=len(SEEN), standardise=True)
    features, mask = _batch()
    params = classifier.init(config, key)
    expected = SCORE(narrow, params, features[..., SEEN], mask)
    features[..., 4:18] = np.nan
    logits = SCORE(config, params, features, mask)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_columns_of_blocks_are_those_of_the_layout():
    names = np.array(FeatureLayout(2).names)
    for block in BLOCKS:
        columns = _small(blocks=(block,)).columns
        assert {name.split("[")[0].split(".")[0] for name in names[columns]} == {block}
    assert len(_small().columns) == C == len(names)


LOGS = {"blocks": ("truth", "loss", "text"), "log_probabilities": True}


def _features(shift=0.0, **settings):
    """Of random logits, the target's moved by `shift` at every step."""
    rng = np.random.default_rng(3)
    target, reference = 3 * rng.normal(size=(2, B, T, 31)).astype(np.float32)
    target += shift * rng.normal(size=(B, T, 1)).astype(np.float32)
    tokens, mask = rng.integers(0, 31, (B, T)), _batch()[1]
    return lt_mia_features(target, reference, tokens, mask, k=2, **settings)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_log_probabilities_are_those_of_the_extraction(kind):
    expected, mask = _features(log_probabilities=True)
    raw, _ = _features(shift=5.0)
    seen = _small(**LOGS).select(kind(raw))
    assert isinstance(seen, type(kind(raw)))
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, np.asarray(expected)[..., SEEN], atol=2e-5)
    assert (np.abs(np.asarray(raw - expected)[mask][:, :2]).max(axis=0) > 3).all()


def test_log_probabilities_without_the_true_token_change_nothing():
    features, _ = _batch()
    seen = _small(**{**LOGS, "blocks": ("loss", "text")}).select(features)
    np.testing.assert_array_equal(seen, features[..., 18:])


@pytest.mark.parametrize("architecture", STATES)
def test_log_probabilities_do_not_see_what_all_logits_share(architecture, key):
    (plain, mask), (moved, _) = _features(), _features(shift=5.0)
    raw, logs = (
        _small(architecture, **{**LOGS, "log_probabilities": log})
        for log in (False, True)
    )
    params = classifier.init(logs, key)
    expected = SCORE(logs, params, plain, mask)
    np.testing.assert_allclose(SCORE(logs, params, moved, mask), expected, atol=1e-4)
    change = SCORE(raw, params, moved, mask) - SCORE(raw, params, plain, mask)
    assert np.nanmax(np.abs(change)) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "blocks are none"),
        ({"blocks": ("loss", "loss")}, "each once"),
        ({"blocks": ("loss",), "inputs": 27}, "27 columns.* have no blocks"),
        ({"log_probabilities": True}, "blocks head and tail.* hide them"),
        ({"log_probabilities": True, "blocks": ("loss", "tail")}, "blocks tail"),
    ],
)
def test_impossible_blocks_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        _small(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 15},
        {"heads": 3},
        {"dropout": 1.0},
        {"layers": 0},
        {"hidden": (4, 0)},
    ],
)
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        _small(**changes)


def test_wrong_columns_are_refused():
    config = _small(inputs=C + 7)
    with pytest.raises(InputError, match=r"\(12, 28\).*\(12, 35\)"):
        classifier.apply(config, _params(), *_batch())


def test_vmap_and_jit_agree_with_a_plain_call():
    config = _small()
    params = _params()
    features, mask = _batch()
    plain = classifier.apply(config, params, features, mask)
    jitted = jax.jit(classifier.apply, static_argnums=0)(config, params, features, mask)
    one = jax.vmap(lambda f, m: classifier.apply(config, params, f[None], m[None])[0])(
        features, mask
    )
    np.testing.assert_allclose(jitted, plain, atol=1e-6)
    np.testing.assert_allclose(one, plain, atol=1e-6)
