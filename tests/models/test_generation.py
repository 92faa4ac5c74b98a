import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest
from model_zoo import CONTEXT, VOCAB, configs, random_params, with_block

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.sharding import batch_sharding, make_mesh

FAMILIES = ["gpt2", "llama", "mamba", "rwkv", "recurrent_gemma"]
LENGTHS, NEW = np.array([2, 5, 3]), 6
# Behind the prompts stands anything.
PROMPTS = np.random.default_rng(4).integers(0, VOCAB, (3, 5)).astype(np.int32)


def continued(logits_of, end=None):
    """Prompts grow token by token, one text at a time."""
    found = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        ids, new = list(prompt[:length]), []
        while len(new) < NEW and end not in new:
            token = int(np.argmax(logits_of(np.array([ids]))[0, -1]))
            ids, new = [*ids, token], [*new, token]
        found.append(new)
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    config = configs()[request.param]
    params = random_params(config, seed=7)
    return LanguageModel(config), params


def assert_rows(generated, expected, filler):
    lengths = [len(row) for row in expected]
    np.testing.assert_array_equal(generated.lengths, lengths)
    padded = [row + [filler] * (NEW - len(row)) for row in expected]
    np.testing.assert_array_equal(generated.tokens, padded)


def test_every_family_continues_as_its_definition(family):
    model, params = family
    expected = continued(lambda ids: oracle.logits(model.config, params, ids))
    generated = greedy(
        model, params, PROMPTS, LENGTHS, max_new_tokens=NEW, end_token=None
    )
    assert_rows(generated, expected, 0)
    assert len({token for row in expected for token in row}) > 2

    # A token that ends one row early, and is part of the row.
    end = expected[0][2]
    shorter = continued(lambda ids: oracle.logits(model.config, params, ids), end)
    assert min(map(len, shorter)) < NEW
    generated = greedy(
        model, params, PROMPTS, LENGTHS, max_new_tokens=NEW, end_token=end
    )
    assert_rows(generated, shorter, end)


def pull(stream, layer):
    """Depends on the layer and on the token itself."""
    return jnp.where(layer == 1, stream + 2 * jnp.flip(stream, axis=-1), stream)


def test_an_intervention_acts_on_prompt_and_new_tokens():
    model = LanguageModel(configs()["llama"])
    params = random_params(model.config, seed=7)
    apply = jax.jit(model.apply, static_argnames="intervention")
    expected = continued(lambda ids: apply(params, ids, intervention=pull))
    generated = greedy(
        model,
        params,
        PROMPTS,
        LENGTHS,
        max_new_tokens=NEW,
        end_token=None,
        intervention=pull,
    )
    assert_rows(generated, expected, 0)
    plain = greedy(model, params, PROMPTS, LENGTHS, max_new_tokens=NEW, end_token=None)
    assert (plain.tokens != generated.tokens).any()


def test_it_stops_when_all_rows_have_ended():
    model = LanguageModel(configs()["gpt2"])
    params, passes = random_params(model.config), []

    def count(stream, layer):
        jax.debug.callback(passes.append, layer)
        return stream

    def run(end):
        passes.clear()
        generated = greedy(
            model,
            params,
            PROMPTS[:1],
            LENGTHS[:1],
            max_new_tokens=NEW,
            end_token=end,
            intervention=count,
        )
        jax.effects_barrier()
        return generated, sum(int(layer) == 0 for layer in passes)

    generated, steps = run(None)
    assert steps == NEW
    first = generated.tokens[0].tolist()
    end = first[3]
    ended, steps = run(end)
    assert steps == int(ended.lengths[0]) == first.index(end) + 1 < NEW


def test_logits_of_other_tokens_are_not_computed():
    model = LanguageModel(configs()["llama"])
    params, rows, width = random_params(model.config), 3, 5 + NEW - 1

    def text(function):
        compiled = jax.jit(function).lower(params, PROMPTS, LENGTHS).compile()
        return compiled.as_text()

    everything = (
        f"f32[{rows * width},{VOCAB}]",
        f"f32[{rows},{width},{VOCAB}]",
    )
    wide = np.zeros((rows, width), np.int32)
    assert any(s in text(lambda p, *_: model.apply(p, wide)) for s in everything)
    decoding = text(
        lambda p, x, n: greedy(model, p, x, n, max_new_tokens=NEW, end_token=None)
    )
    assert f"f32[{rows},{VOCAB}]" in decoding
    assert not any(shape in decoding for shape in everything)


def test_arrays_of_an_intervention_are_data():
    model = LanguageModel(configs()["gpt2"])
    params, traces = random_params(model.config), []

    def push(vector, stream, layer):
        traces.append(layer)
        return stream + vector[None, None]

    found = []
    for scale in (0.0, 3.0, 3.0):
        vector = scale * jnp.arange(model.config.width)
        generated = greedy(
            model,
            params,
            PROMPTS,
            LENGTHS,
            max_new_tokens=NEW,
            end_token=None,
            intervention=jax.tree_util.Partial(push, vector),
        )
        found.append((np.asarray(generated.tokens), len(traces)))
    assert (found[0][0] != found[1][0]).any()
    np.testing.assert_array_equal(found[1][0], found[2][0])
    assert len({number for _, number in found}) == 1


def test_adapters_decode_as_the_merged_model(key):
    model = LanguageModel(configs()["llama"])
    params = random_params(model.config, seed=7)
    adapters = lora.init(key, params, lora.LoraConfig(rank=2))
    adapters = {
        name: (a, jax.random.normal(key, b.shape)) for name, (a, b) in adapters.items()
    }
    options = {"max_new_tokens": NEW, "end_token": None}
    beside = greedy(
        model,
        params,
        PROMPTS,
        LENGTHS,
        adapters=lora.scaled(adapters, 0.5),
        **options,
    )
    merged = lora.merge(params, adapters, 0.5)
    np.testing.assert_array_equal(
        beside.tokens, greedy(model, merged, PROMPTS, LENGTHS, **options).tokens
    )
    plain = greedy(model, params, PROMPTS, LENGTHS, **options).tokens
    assert (beside.tokens != plain).any()


def test_rows_on_several_devices():
    model = LanguageModel(configs()["llama"])
    params = random_params(model.config, seed=7)
    options = {"max_new_tokens": NEW, "end_token": 3}
    prompts, lengths = np.tile(PROMPTS, (4, 1)), np.tile(LENGTHS, 4)
    split = jax.device_put(prompts, batch_sharding(make_mesh(data=4)))
    spread = greedy(model, params, split, lengths, **options)
    alone = greedy(model, params, prompts, lengths, **options)
    np.testing.assert_array_equal(spread.tokens, alone.tokens)
    np.testing.assert_array_equal(spread.lengths, alone.lengths)


@pytest.mark.parametrize(
    ("lengths", "count", "message"),
    [
        ([0, 5, 3], NEW, r"prompts \[0\] have lengths \[0\]; expected 1 to 5"),
        ([2, 6, 9], NEW, r"prompts \[1, 2\] have lengths \[6, 9\]"),
        ([2, 5, 3], 0, "max_new_tokens = 0, expected at least 1"),
        ([2, 5, 3], CONTEXT - 3, f"position table has {CONTEXT} rows"),
    ],
)
def test_bad_requests_are_refused(lengths, count, message):
    model = LanguageModel(configs()["gpt2"])
    with pytest.raises(InputError, match=message):
        greedy(
            model,
            random_params(model.config),
            PROMPTS,
            np.array(lengths),
            max_new_tokens=count,
            end_token=None,
        )


def test_a_model_that_sees_later_tokens_is_refused():
    config = with_block(configs()["llama"], mixer={"causal": False})
    with pytest.raises(InputError, match=r"decode it with policy\.diffusion"):
        greedy(
            LanguageModel(config),
            {},
            PROMPTS,
            LENGTHS,
            max_new_tokens=1,
            end_token=None,
        )
