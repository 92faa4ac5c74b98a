"""Log probabilities of trajectories against slow NumPy, and the ratio of 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_world import (
    DENOISER,
    LENGTHS,
    MASK,
    PARAMS,
    PROMPTS,
    decoded,
    log_softmax,
    logits_of,
)
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.diffusion.decode import DecodeSettings, decode
from lt_mia_jax.policy.diffusion.schedules import ascending_counts
from lt_mia_jax.policy.diffusion.trajectory import (
    cj_grpo_loss,
    one_step_log_probs,
    trajectory_log_probs,
)

KEY = jax.random.key(3)
SETTINGS = DecodeSettings(8, ascending_counts(8), temperature=0.8)
ADVANTAGES = jnp.array([1.0, -0.5, 0.25])


@pytest.fixture(scope="module")
def rollout():
    return decode(DENOISER, PARAMS, PROMPTS, LENGTHS, settings=SETTINGS, key=KEY)


@pytest.fixture(scope="module")
def scored():
    return jit(lambda p, r: trajectory_log_probs(DENOISER, p, r, SETTINGS))


def test_tokens_are_scored_on_the_states_they_came_from(rollout, scored):
    found = scored(PARAMS, rollout)
    np.testing.assert_allclose(found, rollout.log_probs, atol=1e-5)
    one = jit(lambda r: one_step_log_probs(DENOISER, PARAMS, r, SETTINGS))(rollout)
    for row in range(3):
        tokens, states, steps, _ = decoded(SETTINGS, KEY, row)
        for place, (token, step) in enumerate(zip(tokens, steps, strict=True)):
            own = log_softmax(logits_of(row, states[step]) / 0.8)[place, token]
            np.testing.assert_allclose(found[row, place], own, atol=2e-5)
            own = log_softmax(logits_of(row, np.full(8, MASK)) / 0.8)[place, token]
            np.testing.assert_allclose(one[row, place], own, atol=2e-5)
    # They agree on the first step, and nowhere else.
    same = np.isclose(one, found, atol=1e-5)
    np.testing.assert_array_equal(same, np.asarray(rollout.steps == 0))


def test_the_ratio_of_the_first_update_is_1_to_the_bit(rollout, scored):
    old, new = scored(PARAMS, rollout), scored(PARAMS, rollout)
    np.testing.assert_array_equal(np.exp(new - old), 1.0)

    # Without `old` it is the same under any compilation: the ratio of each step of each
    # text is 1, and the loss the mean advantage.
    value, aux = cj_grpo_loss(new, rollout, ADVANTAGES)
    np.testing.assert_allclose(value, -ADVANTAGES.mean(), rtol=1e-6)
    assert aux.clipped == 0
    # Each step weighs the same, however many tokens it commits.
    slope = jax.grad(lambda x: cj_grpo_loss(x, rollout, ADVANTAGES)[0])(new)
    share = 1 / np.asarray(SETTINGS.counts)[np.asarray(rollout.steps)] / SETTINGS.steps
    np.testing.assert_allclose(slope, -share * ADVANTAGES[:, None] / 3, rtol=1e-5)


def test_the_gradient_through_recomputed_states(rollout):
    """Against finite differences along one direction."""
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), PARAMS)
    weight = jnp.asarray(rng.normal(size=(3, 8)))

    def total(params):
        scores = trajectory_log_probs(DENOISER, params, rollout, SETTINGS)
        return (scores * weight).sum()

    slope, total = jit(jax.grad(total))(PARAMS), jit(total)
    along = sum(
        (x * d).sum()
        for x, d in zip(jax.tree.leaves(slope), jax.tree.leaves(direction), strict=True)
    )
    h = 2e-3
    ends = [
        float(total(jax.tree.map(lambda p, d, s=s: p + s * h * d, PARAMS, direction)))
        for s in (1, -1)
    ]
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * h), rtol=2e-2)


def test_other_settings_than_those_of_the_decoding_are_refused(rollout):
    warmer = DecodeSettings(8, ascending_counts(8), temperature=1.0)
    for provider in (trajectory_log_probs, one_step_log_probs):
        with pytest.raises(InputError, match=r"temperature=0\.8.*is not its policy"):
            provider(DENOISER, PARAMS, rollout, warmer)
