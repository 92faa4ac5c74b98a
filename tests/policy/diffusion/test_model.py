"""The layout of texts, padding, the loss, and which models are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_world import (
    CONFIG,
    DENOISER,
    END,
    LENGTHS,
    MASK,
    PARAMS,
    PROMPTS,
    log_softmax,
    logits_of,
)
from model_zoo import configs
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.policy.diffusion.model import (
    NEVER,
    PADDING,
    Diffusion,
    Examples,
    bidirectional,
    check_bidirectional,
    denoising_loss,
    filled,
    join,
    masked_at_random,
    response_logits,
)

RESPONSES = np.random.default_rng(5).integers(0, 11, (3, 6)).astype(np.int32)


def test_responses_stand_behind_their_prompts():
    found = np.asarray(join(PROMPTS, LENGTHS, RESPONSES))
    for row, length in enumerate(LENGTHS):
        text = [*PROMPTS[row, :length], *RESPONSES[row]]
        expected = text + [PADDING] * (found.shape[1] - len(text))
        np.testing.assert_array_equal(found[row], expected)


def test_padding_is_not_seen():
    """Rows of several lengths in one batch have the logits that they have alone."""
    logits = jit(
        lambda prompts: response_logits(DENOISER, PARAMS, prompts, LENGTHS, RESPONSES)
    )
    found = logits(PROMPTS)
    for row in range(3):
        expected = logits_of(row, RESPONSES[row])
        np.testing.assert_allclose(found[row, :, :MASK], expected[:, :MASK], atol=2e-5)
    np.testing.assert_array_equal(found[:, :, MASK], np.float32(NEVER))
    other = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, 7)
    np.testing.assert_array_equal(found, logits(other))


def test_every_place_sees_every_other():
    def first(stream):
        apply = DENOISER.model.apply
        text = join(PROMPTS[1:2], LENGTHS[1:2], RESPONSES[1:2])
        return apply(
            PARAMS,
            text,
            intervention=lambda x, layer: jnp.where(layer == 0, x + stream, x),
        )[0, 0].sum()

    gradient = jit(jax.grad(first))(jnp.zeros((1, 11, 8)))
    assert (jnp.abs(gradient).sum(axis=-1) > 0).all()


def test_the_loss_is_that_of_the_definition():
    key = jax.random.key(2)
    responses = filled(RESPONSES, np.array([3, 6, 1]), END)
    examples = Examples(PROMPTS, LENGTHS, responses)
    value, slope = jit(
        jax.value_and_grad(lambda p: denoising_loss(DENOISER, p, examples, key))
    )(PARAMS)
    masked, rate = (np.asarray(x) for x in masked_at_random(key, (3, 6)))
    total = 0.0
    for row in range(3):
        answer = np.asarray(responses[row])
        own = log_softmax(logits_of(row, np.where(masked[row], MASK, answer)))
        for place in np.flatnonzero(masked[row]):
            total -= own[place, answer[place]] / (rate[row] * 6 * 3)
    np.testing.assert_allclose(value, total, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    # Ends that fill a response are learned like any token.
    np.testing.assert_array_equal(responses[2, 1:], END)


def test_masks_have_the_rate_of_their_text():
    masked, rate = masked_at_random(jax.random.key(0), (400, 500))
    np.testing.assert_allclose(masked.mean(axis=1), rate, atol=0.12)
    np.testing.assert_allclose(np.sort(rate), np.linspace(0, 1, 400), atol=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamba", "Mamba reads from left to right"),
        ("rwkv", "RwkvTimeMix reads"),
        ("recurrent_gemma", "RgLru reads"),
        ("bloom", "ALiBi favors later keys"),
    ],
)
def test_families_that_cannot_see_later_tokens_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        bidirectional(configs()[name])


def test_what_is_no_masked_model_is_refused():
    causal = gpt2_like(11, width=8, layers=1, heads=2, context=16)
    with pytest.raises(InputError, match="its attention is causal; a masked-diffusion"):
        check_bidirectional(causal)
    with pytest.raises(InputError, match="must be at least 1, and causal"):
        bidirectional(configs()["mistral"])
    with pytest.raises(InputError, match="mask = 11 and end = 0 must be ids below 11"):
        Diffusion(LanguageModel(CONFIG), mask=11, end=0)
    with pytest.raises(InputError, match="both 3; they must differ"):
        Diffusion(LanguageModel(CONFIG), mask=3, end=3)
