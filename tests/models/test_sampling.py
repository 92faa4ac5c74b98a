"""Sampling that remembers, against reading the whole text for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import CONTEXT, VOCAB, configs, random_params
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.models.sampling import nucleus, sample
from lt_mia_jax.sharding import batch_sharding, make_mesh

FAMILIES = ["gpt2", "qwen2-windows-tied", "mpt", "mamba", "rwkv", "recurrent_gemma"]
LENGTHS, NEW = np.array([2, 5, 3]), 6
# Behind the prompts stands anything.
PROMPTS = np.random.default_rng(4).integers(0, VOCAB, (3, 5)).astype(np.int32)
KEY = jax.random.key(3)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    config = configs()[request.param]
    return LanguageModel(config), random_params(config, seed=7)


def unchanged(stream, layer):
    return stream


def texts(found):
    """Each prompt with its continuation, as long as they are."""
    rows = zip(PROMPTS, LENGTHS, found.tokens, found.lengths, strict=True)
    return [np.concatenate([p[:n], t[:m]]) for p, n, t, m in rows]


def test_each_family_remembers_what_it_read(family):
    """In pieces of any length, padded or not, the logits are those of the whole."""
    model, params = family
    ids = np.random.default_rng(5).integers(0, VOCAB, (3, 9)).astype(np.int32)
    whole = jit(model.apply)(params, ids)
    step = jit(model.advance, static_argnames="memory")
    state, read = None, np.zeros(3, int)
    for counts in ([2, 4, 3], [1, 0, 2], [4, 3, 0], [1, 1, 1]):
        piece = np.zeros((3, 4), np.int32)
        for row, count in enumerate(counts):
            piece[row, :count] = ids[row, read[row] : read[row] + count]
        real = np.arange(4) < np.array(counts)[:, None]
        piece[~real] = 7  # anything
        logits, state = step(
            params, jnp.asarray(piece), jnp.asarray(real), state, memory=9
        )
        read += counts
        np.testing.assert_array_equal(state.lengths, read)
        for row in np.flatnonzero(counts):
            expected = whole[row, read[row] - 1]
            np.testing.assert_allclose(logits[row], expected, atol=1e-4)


def test_what_is_likely_without_a_state_is_drawn_with_one(family):
    model, params = family
    plain = greedy(model, params, PROMPTS, LENGTHS, max_new_tokens=NEW, end_token=None)
    found = sample(
        model, params, PROMPTS, LENGTHS, key=KEY, max_new_tokens=NEW, temperature=0.0
    )
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.lengths, NEW)


def test_log_probabilities_are_those_of_the_model(family):
    model, params = family
    options = {"key": KEY, "max_new_tokens": NEW, "temperature": 0.7}
    plain = sample(model, params, PROMPTS, LENGTHS, **options)
    end = int(plain.tokens[0, 1])
    first = int(np.argmax(plain.tokens[0] == end)) + 1
    found = sample(model, params, PROMPTS, LENGTHS, end_tokens=[end], **options)
    assert found.lengths[0] == first
    assert not found.log_probs[0, first:].any()
    np.testing.assert_array_equal(found.tokens[0, first:], end)
    whole = np.zeros((3, 11), np.int32)
    for row, text in enumerate(texts(found)):
        whole[row, : len(text)] = text
    expected = jax.nn.log_softmax(jit(model.apply)(params, whole) / 0.7)
    for row, text in enumerate(texts(found)):
        count = int(found.lengths[row])
        places = np.arange(len(text) - count, len(text))
        np.testing.assert_allclose(
            found.log_probs[row, :count],
            expected[row, places - 1, text[places]],
            atol=1e-4,
        )
        # Rows that end early change nothing for the others.
        np.testing.assert_array_equal(
            found.tokens[row, :count], plain.tokens[row, :count]
        )


def test_draws_have_the_frequencies_of_the_model():
    config = configs()["gpt2"]
    model, params = LanguageModel(config), random_params(config, seed=7)
    rows, temperature = 4000, 1.5
    prompt = np.repeat(PROMPTS[1:2], rows, axis=0)
    found = sample(
        model,
        params,
        prompt,
        np.full(rows, 5),
        key=KEY,
        max_new_tokens=1,
        temperature=temperature,
    )
    logits = model.apply(params, PROMPTS[1:2])[0, -1] / temperature
    expected = np.float64(jax.nn.softmax(logits))
    counts = np.bincount(found.tokens[:, 0], minlength=VOCAB)
    # Chi-square over the tokens that are drawn often enough.
    often = expected * rows >= 5
    terms = (counts - expected * rows)[often] ** 2 / (expected * rows)[often]
    assert terms.sum() < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_a_row_does_not_depend_on_its_neighbors_or_devices(family):
    model, params = family
    options = {"key": KEY, "max_new_tokens": NEW, "temperature": 0.9}
    prompts, lengths = np.tile(PROMPTS, (4, 1))[:8], np.tile(LENGTHS, 4)[:8]
    whole = sample(model, params, prompts, lengths, **options)
    alone = sample(model, params, PROMPTS, LENGTHS, **options)
    np.testing.assert_array_equal(whole.tokens[:3], alone.tokens)
    wide = np.pad(PROMPTS, ((0, 0), (0, 2)), constant_values=9)
    padded = sample(model, params, wide, LENGTHS, **options)
    np.testing.assert_array_equal(padded.tokens, alone.tokens)
    mesh = make_mesh()
    spread = sample(
        model,
        params,
        jax.device_put(prompts, batch_sharding(mesh)),
        jax.device_put(lengths, batch_sharding(mesh)),
        **options,
    )
    np.testing.assert_array_equal(spread.tokens, whole.tokens)


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    rng = np.random.default_rng(6)
    probs = rng.dirichlet(np.full(12, 0.5), size=5)
    for p in (0.05, 0.5, 0.9, 1.0):
        kept = np.isfinite(nucleus(jnp.log(jnp.asarray(probs)), jnp.float32(p)))
        for row, mask in zip(probs, kept, strict=True):
            order = np.argsort(-row)
            count = int(np.searchsorted(np.cumsum(row[order]), p - 1e-6)) + 1
            np.testing.assert_array_equal(np.flatnonzero(mask), sorted(order[:count]))


def test_a_small_nucleus_is_greedy(family):
    model, params = family
    options = {"key": KEY, "max_new_tokens": NEW}
    small = sample(model, params, PROMPTS, LENGTHS, top_p=1e-6, **options)
    likely = sample(model, params, PROMPTS, LENGTHS, temperature=0.0, **options)
    np.testing.assert_array_equal(small.tokens, likely.tokens)


def test_adapters_are_read():
    config = configs()["llama"]
    model, params = LanguageModel(config), random_params(config, seed=7)
    adapters = lora.init(jax.random.key(1), params, lora.LoraConfig(rank=2))
    adapters = {
        name: (down, jax.random.normal(KEY, up.shape))
        for name, (down, up) in adapters.items()
    }
    options = {"key": KEY, "max_new_tokens": NEW, "temperature": 0.0}
    beside = sample(model, params, PROMPTS, LENGTHS, adapters=adapters, **options)
    merged = lora.merge(params, adapters, 1.0)
    expected = sample(model, merged, PROMPTS, LENGTHS, **options)
    np.testing.assert_array_equal(beside.tokens, expected.tokens)


def test_one_program_serves_all_lengths_and_temperatures(family):
    model, params = family
    counted = []

    def traced(lengths, temperature):
        counted.append(1)
        return sample(
            model,
            params,
            PROMPTS,
            lengths,
            key=KEY,
            max_new_tokens=2,
            temperature=temperature,
            end_tokens=[1, 2],
        ).tokens

    program = jit(traced)
    program(LENGTHS, 1.0)
    program(np.array([1, 1, 4]), 0.5)
    assert len(counted) == 1


def test_bad_arguments_are_named():
    config = configs()["gpt2"]
    model, params = LanguageModel(config), random_params(config, seed=7)

    def refused(match, lengths=LENGTHS, new=2, **options):
        with pytest.raises(InputError, match=match):
            sample(
                model, params, PROMPTS, lengths, key=KEY, max_new_tokens=new, **options
            )

    refused("max_new_tokens = 0", new=0)
    refused(r"prompts \[1\] have lengths \[6\]", lengths=np.array([1, 6, 2]))
    refused("temperature = -1.0", temperature=-1.0)
    refused("top_p = 0.0", top_p=0.0)
    refused("position table has", new=CONTEXT)
