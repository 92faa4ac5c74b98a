"""Slices of traces, advantages over steps, and the losses of TraceRL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_world import DENOISER, LENGTHS, MASK, PARAMS, PROMPTS, VOCAB
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.diffusion.decode import DecodeSettings, decode, trajectory
from lt_mia_jax.policy.diffusion.model import join
from lt_mia_jax.policy.diffusion.trace import (
    collapse_steps,
    last_step_rewards,
    random_slices,
    state_values,
    step_gae,
    trace_advantages,
    trace_loss,
    trace_slices,
    value_init,
    value_loss,
)
from lt_mia_jax.policy.diffusion.trajectory import (
    state_log_probs,
    trajectory_log_probs,
)

RNG = np.random.default_rng(0)
STEPS = np.array([[0, 3, 3, 9, 12, 10, 15, 15], [7, 6, 5, 4, 20, 20, 20, 20]])
TOKENS = RNG.integers(0, 9, STEPS.shape)


def slow_collapse(row, shrink, block):
    """Block by block: the place of each step among the sorted ones."""
    found, start = [], 0
    for first in range(0, len(row), block):
        part = [int(x) for x in row[first : first + block]]
        order = sorted(set(part))
        merged = [start + order.index(x) // shrink for x in part]
        found, start = found + merged, max(merged) + 1
    return found


@pytest.mark.parametrize("shrink", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [2, 4, 8])
def test_neighboring_steps_of_a_block_are_merged(shrink, block):
    found = collapse_steps(jnp.asarray(STEPS), shrink, block)
    for row in range(2):
        np.testing.assert_array_equal(
            found[row], slow_collapse(STEPS[row], shrink, block)
        )


@pytest.mark.parametrize("block", [2, 4, 8])
def test_slices_train_every_token_once(block):
    inputs, trained = trace_slices(
        jnp.asarray(TOKENS), jnp.asarray(STEPS), block, mask=MASK
    )
    np.testing.assert_array_equal(trained.sum(axis=0), 1)
    for k, row, first in np.ndindex(len(inputs), 2, 8 // block):
        own = slice(first * block, (first + 1) * block)
        steps = STEPS[row, own]
        order = sorted(set(steps))
        for place in range(block):
            # The lowest step that is left is trained; it and later ones are masked.
            index = order.index(steps[place])
            token = TOKENS[row, own][place]
            assert inputs[k, row, own][place] == (token if index < k else MASK)
            assert trained[k, row, own][place] == (index == k)
    more = trace_slices(
        jnp.asarray(TOKENS), jnp.asarray(STEPS), block, mask=MASK, count=10
    )
    np.testing.assert_array_equal(more[0][: len(inputs)], inputs)
    assert not more[1][len(inputs) :].any()


def test_slices_of_one_block_are_the_trajectory():
    settings = DecodeSettings(8, (3, 3, 2))
    rollout = decode(
        DENOISER, PARAMS, PROMPTS, LENGTHS, settings=settings, key=jax.random.key(1)
    )
    states, new = trajectory(rollout.tokens, rollout.steps, 3, MASK)
    inputs, trained = trace_slices(rollout.tokens, rollout.steps, 8, mask=MASK)
    np.testing.assert_array_equal(inputs, states[:-1])
    np.testing.assert_array_equal(trained, new)
    scores = jit(lambda *x: state_log_probs(DENOISER, PARAMS, rollout, *x))
    np.testing.assert_allclose(
        scores(inputs, trained),
        trajectory_log_probs(DENOISER, PARAMS, rollout, settings),
        atol=1e-5,
    )


def test_random_slices_train_what_they_mask():
    inputs, trained = random_slices(jax.random.key(0), jnp.asarray(TOKENS), 50, mask=9)
    np.testing.assert_array_equal(inputs == 9, trained)
    shown = np.broadcast_to(TOKENS, inputs.shape)
    np.testing.assert_array_equal(inputs[~trained], shown[~np.asarray(trained)])
    np.testing.assert_allclose(trained.mean(), 0.5, atol=0.1)


def slow_gae(rewards, values, steps, mask, g, lam):
    """From the last step to the first, row by row."""
    gains, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        value = advantage = total = 0.0
        for step in sorted(set(steps[row][mask[row]]), reverse=True):
            own = np.flatnonzero((steps[row] == step) & mask[row])
            r, v = rewards[row, own], values[row, own]
            gains[row, own] = r - v + g * value + g * lam * advantage
            returns[row, own] = r + g * total
            gap = r.mean() - v.mean() + g * value
            value, advantage = v.mean(), gap + g * lam * advantage
            total = r.mean() + g * total
    return gains, returns


def gae_case():
    rewards, values = RNG.normal(size=(2, 2, 8))
    mask = np.ones((2, 8), bool)
    mask[0, 3:5] = mask[1, 6] = False
    return rewards, values, mask


@pytest.mark.parametrize(("g", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.8)])
def test_advantages_over_steps_equal_the_definition(g, lam):
    rewards, values, mask = gae_case()
    found = step_gae(
        *(jnp.asarray(x) for x in (rewards, values, STEPS, mask)),
        discount=g,
        trace=lam,
        step_count=21,
    )
    expected = slow_gae(rewards, values, STEPS, mask, g, lam)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_two_identities_of_the_value_target():
    _, values, mask = gae_case()
    total = np.array([0.7, -1.3])
    arrays = [jnp.asarray(x) for x in (values, STEPS, mask)]
    rewards = last_step_rewards(jnp.asarray(total), *arrays[1:])
    for row, last in ((0, [6, 7]), (1, [4, 5, 7])):
        np.testing.assert_array_equal(np.flatnonzero(rewards[row]), last)
    gain, returns = step_gae(rewards, *arrays, step_count=21)
    expected = np.where(mask, total[:, None], 0)
    np.testing.assert_allclose(returns, expected, atol=1e-6)
    np.testing.assert_allclose(gain, np.where(mask, expected - values, 0), atol=1e-6)
    gain, _ = step_gae(rewards, *arrays, trace=0.0, step_count=21)
    for row, place in np.argwhere(mask):
        later = STEPS[row][mask[row] & (STEPS[row] > STEPS[row, place])]
        after = 0.0
        if later.size:
            after = values[row][mask[row] & (STEPS[row] == later.min())].mean()
        own = rewards[row, place] - values[row, place] + after
        np.testing.assert_allclose(gain[row, place], own, atol=1e-6)


def test_prompts_that_teach_nothing_are_dropped():
    rewards = jnp.array([[1, 1, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    found = trace_advantages(rewards.astype(jnp.float32))
    assert (found[jnp.array([0, 2])] == 0).all()
    row = np.array([1, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(found[1], (row - row.mean()) / row.std(), rtol=1e-4)


def test_the_loss_is_close_to_the_old_policy_or_to_a_reference():
    """Trap: as released, the KL is to the policy that decoded."""
    new, old, reference = -RNG.uniform(0.2, 2, (3, 2, 8))
    gain, (_, _, mask) = RNG.normal(size=(2, 8)), gae_case()
    arrays = [jnp.asarray(x, jnp.float32) for x in (new, old, gain)]
    for name, anchor in (("old", old), ("ref", reference)):
        value, _ = trace_loss(
            *arrays,
            jnp.asarray(mask),
            kl_to=name,
            reference=jnp.asarray(reference, jnp.float32),
            beta=0.3,
        )
        ratio = np.exp(new - old)
        terms = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
        terms -= 0.3 * (np.exp(anchor - new) - (anchor - new) - 1)
        np.testing.assert_allclose(value, -terms[mask].sum() / 16, rtol=1e-5)
    with pytest.raises(ValueError, match="needs a reference"):
        trace_loss(*arrays, jnp.asarray(mask), kl_to="ref")


def test_values_are_clipped_around_the_old_ones():
    values, old, returns = RNG.normal(size=(3, 2, 8))
    mask = gae_case()[2]
    found = value_loss(*(jnp.asarray(x) for x in (values, old, returns, mask)))
    near = np.clip(values, old - 0.2, old + 0.2)
    error = np.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    np.testing.assert_allclose(found, error[mask].mean(), rtol=1e-5)


def test_a_value_model_reads_the_state_of_a_token():
    rollout = decode(
        DENOISER,
        PARAMS,
        PROMPTS,
        LENGTHS,
        settings=DecodeSettings(4, (2, 2)),
        key=jax.random.key(1),
    )
    slices = trace_slices(rollout.tokens, rollout.steps, 4, mask=MASK)
    params = value_init(jax.random.key(2), DENOISER)
    values = jit(lambda p: state_values(DENOISER, p, rollout, *slices))
    np.testing.assert_array_equal(values(params), 0.0)
    params["head"] = {"kernel": jnp.ones(8), "bias": jnp.asarray(2.0)}
    params["model"] = PARAMS
    found = values(params)
    streams = jit(lambda text: DENOISER.model.apply(PARAMS, text, capture=(1,))[1][1])
    for k in range(2):
        stream = np.asarray(streams(join(PROMPTS, LENGTHS, slices[0][k])))
        for row, length in enumerate(LENGTHS):
            own = stream[row, length : length + 4].sum(axis=-1) + 2
            now = np.asarray(slices[1][k, row])
            np.testing.assert_allclose(found[row][now], own[now], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: collapse_steps(s, 0, 4), "shrink = 0"),
        (lambda s: collapse_steps(s, 1, 3), "block = 3 must divide the 8 response"),
        (lambda s: trace_slices(s, s, 5, mask=VOCAB), "block = 5 must divide"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(jnp.asarray(STEPS))
