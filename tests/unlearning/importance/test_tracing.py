from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest
from model_zoo import configs, random_ids, random_params

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.unlearning.importance.tracing import Trace, causal_layers, causal_trace

SUBJECT = np.array([[0, 1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]])
ANSWER = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 0, 0]])
SUBJECT, ANSWER = SUBJECT.astype(np.uint8), ANSWER.astype(np.uint8)
IDS = random_ids()


@pytest.fixture(scope="module")
def gpt2():
    config = configs()["gpt2"]
    return LanguageModel(config), random_params(config)


@lru_cache
def compiled(model, draws):
    return jax.jit(
        partial(
            causal_trace, apply_fn=model.apply, layers=model.config.layers, draws=draws
        )
    )


def trace(model, params, key, *, subject=SUBJECT, answer=ANSWER, draws=2, **options):
    options = {"restore": subject, "noise": 3.0, **options}
    return compiled(model, draws)(params, IDS, subject, answer, key=key, **options)


def oracle_probability(logits):
    found = []
    for row in range(len(IDS)):
        logs = []
        for t in np.flatnonzero(ANSWER[row]):
            z = logits[row, t - 1]
            logs.append(z[IDS[row, t]] - np.log(np.exp(z - z.max()).sum()) - z.max())
        found.append(np.exp(np.mean(logs)))
    return np.array(found)


def oracle_run(config, params, stream, edit):
    """Layer by layer, with the stream edited after each."""
    stream = edit(stream, 0)
    for layer in range(config.layers):
        part = config.pattern[layer % len(config.pattern)]
        own = oracle.layer_params(config, params, layer)
        stream = edit(oracle.block(stream, part, own), layer + 1)
    x = oracle.normalize(stream, config.final_norm, params["final_norm"])
    return x @ oracle.wide(params["embedding"], "tokens").T


@pytest.mark.parametrize("where", [SUBJECT, np.roll(SUBJECT, 2, axis=1)])
def test_it_equals_its_definition(gpt2, key, where):
    model, params = gpt2
    config = model.config
    found = trace(model, params, key, noise=1.5, restore=where)

    clean = oracle.streams(config, params, IDS)
    hidden, restored = SUBJECT[..., None] > 0, where[..., None] > 0
    deviation = 1.5 * clean[0][SUBJECT > 0].std()
    runs = []
    for draw in range(2):
        noise = jax.random.normal(jax.random.fold_in(key, draw), clean[0].shape)
        noisy = np.where(hidden, clean[0] + deviation * np.asarray(noise), clean[0])
        for back in (None, *range(config.layers + 1)):

            def edit(stream, layer, back=back):
                if layer != back:
                    return stream
                return np.where(restored, clean[layer], stream)

            logits = oracle_run(config, params, noisy, edit)
            runs.append(oracle_probability(logits))
    expected = np.array(runs).reshape(2, config.layers + 2, -1).mean(axis=0)
    np.testing.assert_allclose(found.corrupted, expected[0], rtol=1e-3)
    np.testing.assert_allclose(found.restored, expected[1:], rtol=1e-3)
    plain = oracle_probability(oracle.logits(config, params, IDS))
    np.testing.assert_allclose(found.clean, plain, rtol=1e-3)
    assert (np.abs(found.corrupted / found.clean - 1) > 0.05).all()


@pytest.mark.parametrize("name", ["mamba", "rwkv", "recurrent_gemma"])
def test_what_every_family_must_show(name, key):
    model = LanguageModel(configs()[name])
    params = random_params(model.config)
    found = trace(model, params, key)
    assert found.effect.shape == (model.config.layers + 1, len(IDS))
    # The noise is undone where it entered; the last stream of the subject, which
    # scores none of the answer, moves nothing.
    np.testing.assert_allclose(found.restored[0], found.clean, rtol=1e-3)
    np.testing.assert_allclose(found.restored[-1], found.corrupted, rtol=1e-5)
    assert (np.abs(found.corrupted / found.clean - 1) > 1e-3).all()
    everywhere = trace(model, params, key, restore=np.ones_like(SUBJECT))
    for restored in everywhere.restored:
        np.testing.assert_allclose(restored, found.clean, rtol=1e-3)


def test_without_noise_nothing_happens(gpt2, key):
    found = trace(*gpt2, key, noise=0.0)
    np.testing.assert_allclose(found.corrupted, found.clean, rtol=1e-5)
    np.testing.assert_allclose(found.effect, 0, atol=1e-6)


def test_a_batch_without_subject_is_no_nan(gpt2, key):
    nothing = np.zeros_like(SUBJECT)
    found = trace(*gpt2, key, subject=nothing, answer=nothing)
    np.testing.assert_array_equal(found.restored, 1)


def test_one_pass_is_compiled_for_all_layers_and_draws(gpt2, key):
    model, params = gpt2
    calls = []

    def counted(*arguments, **options):
        calls.append(options)
        return model.apply(*arguments, **options)

    options = {"apply_fn": counted, "layers": 2, "draws": 3}
    causal_trace(params, IDS, SUBJECT, ANSWER, key=key, **options)
    assert len(calls) == 2  # The clean one, and that of the loop.


def test_layers_are_chosen_by_their_effect():
    corrupted = jnp.array([0.1, 0.2])
    gained = jnp.array([0.9, 0.2, 0.5, -0.4, 0.3])[:, None] * jnp.ones((1, 2))
    made = Trace(corrupted + 0.9, corrupted, corrupted[None] + gained)
    assert causal_layers(made, 2) == (2, 4)
    assert causal_layers(made, 4) == (1, 2, 3, 4)
    with pytest.raises(InputError, match="count = 5, expected 1 to 4 layers"):
        causal_layers(made, 5)


def test_no_draw_is_refused(gpt2, key):
    with pytest.raises(InputError, match="draws = 0"):
        trace(*gpt2, key, draws=0)
