"""Divergences, rewards and the loss of Masters in float64."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit

from lt_mia_jax.policy.masters import (
    js_divergence,
    masters_loss,
    scored_answers,
    token_log_probs,
    transfer_reward,
)
from lt_mia_jax.policy.objective import group_advantages

MASK = jnp.array([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
IDS = jnp.array([[1, 0, 3, 2], [2, 2, 4, 1], [0, 1, 3, 3], [4, 0, 0, 1]])


def random_logits(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.normal(size=(4, 4, 5)), jnp.float32)


def softmax(x):
    x = np.exp(np.asarray(x, np.float64) - np.max(x))
    return x / x.sum()


def kl(p, q):
    return float((p * np.log(p / q)).sum())


def slow_divergence(teacher, student):
    """From step t - 1 at each token t of the answer; the first token has no step."""
    teacher, student, found = np.asarray(teacher), np.asarray(student), []
    for n in range(4):
        total, count = 0.0, 0
        for t in range(1, 4):
            if MASK[n, t]:
                p, q = softmax(teacher[n, t - 1]), softmax(student[n, t - 1])
                total += 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)
                count += 1
        found.append(total / max(count, 1))
    return np.array(found)


def slow_log_probs(logits):
    found, logits = np.zeros((4, 4)), np.asarray(logits)
    for n in range(4):
        for t in range(1, 4):
            found[n, t] = np.log(softmax(logits[n, t - 1])[IDS[n, t]])
    return found


def test_divergence_is_its_definition_on_the_tokens_of_the_answer():
    teacher, student = random_logits(0), random_logits(1)
    found = js_divergence(teacher, student, MASK)
    np.testing.assert_allclose(found, slow_divergence(teacher, student), atol=1e-6)
    np.testing.assert_allclose(js_divergence(student, teacher, MASK), found, atol=1e-7)
    assert float(found[3]) == 0  # no token


def test_divergence_is_between_nothing_and_log_two():
    same = js_divergence(random_logits(0), random_logits(0) + 3.0, MASK)
    np.testing.assert_allclose(same, 0.0, atol=1e-6)
    far = jax.nn.one_hot(jnp.zeros((4, 4), int), 5) * 200.0
    other = jax.nn.one_hot(jnp.ones((4, 4), int), 5) * 200.0
    found = js_divergence(far, other, MASK)
    np.testing.assert_allclose(found[:3], np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda x: js_divergence(far, x, MASK).sum())(other)
    assert np.isfinite(gradient).all()


def test_both_ends_of_the_reward_are_attained_in_every_group():
    rng = np.random.default_rng(2)
    divergence = rng.uniform(0, np.log(2), size=(50, 8)).astype(np.float32)
    found = np.asarray(transfer_reward(jnp.asarray(divergence)))
    assert (found.min(axis=1) == 0).all()
    assert (found.max(axis=1) == 1).all()
    for row, rewards in zip(divergence.astype(np.float64), found, strict=True):
        expected = [(max(row) - d) / (max(row) - min(row)) for d in row]
        np.testing.assert_allclose(rewards, expected, atol=1e-5)


def test_equal_divergences_teach_nothing():
    divergence = jnp.array([[0.3] * 4, [0.0] * 4, [0.1, 0.2, 0.3, 0.4]])
    found = transfer_reward(divergence)
    assert np.isfinite(found).all()
    advantages = group_advantages(found)
    assert not np.any(advantages[:2])
    assert np.any(advantages[2])


def test_a_right_answer_on_which_models_agree_is_worth_most():
    teacher, student = random_logits(0), random_logits(1)
    accuracy = jnp.array([1.0, 0.0, 1.0, 0.0])
    found = scored_answers(IDS, MASK, accuracy, teacher, student, group=2)
    apart = slow_divergence(teacher, student).reshape(2, 2)
    rewards = np.asarray(accuracy).reshape(2, 2) + (
        apart == apart.min(axis=1, keepdims=True)
    )
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, keepdims=True)
    expected = np.where(spread > 0, centered / (spread + 1e-6), 0).reshape(-1)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-4)
    np.testing.assert_allclose(found.old, slow_log_probs(student), atol=1e-5)
    with pytest.raises(ValueError, match="groups of 3"):
        scored_answers(IDS, MASK, accuracy, teacher, student, group=3)


def slow_loss(logits, answers, weight, clip):
    new, total, texts = slow_log_probs(logits), 0.0, 0
    for n in range(4):
        gains = []
        for t in range(1, 4):
            if MASK[n, t]:
                gain = float(answers.advantages[n])
                ratio = np.exp(new[n, t] - float(answers.old[n, t]))
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                gains.append(min(ratio * gain, clipped * gain))
        if gains:
            total += np.mean(gains)
            texts += 1
    apart = slow_divergence(np.asarray(answers.teacher), logits)
    return -total / texts + weight * apart.mean()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_the_clipped_objective_and_the_divergence(weight):
    teacher, start, later = (random_logits(n) for n in range(3))
    accuracy = jnp.array([1.0, 0.0, 0.2, 0.9])
    answers = scored_answers(IDS, MASK, accuracy, teacher, start, group=4)
    model = SimpleNamespace(apply=lambda params, ids: params)
    both = jit(
        jax.value_and_grad(
            lambda x: masters_loss(model, x, answers, weight=weight, clip=0.3)[0]
        )
    )
    later = start + 0.1 * later
    value, gradient = both(later)
    expected = slow_loss(later, answers, weight, 0.3)
    assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    step, direction = 1e-4, np.random.default_rng(3).normal(size=later.shape)
    up, down = (
        slow_loss(np.asarray(later) + s * step * direction, answers, weight, 0.3)
        for s in (1, -1)
    )
    slope = float((np.asarray(gradient) * direction).sum())
    assert slope == pytest.approx((up - down) / (2 * step), rel=1e-2, abs=1e-4)


def test_the_first_update_has_the_ratio_one_whoever_wrote_the_answer():
    teacher, start = random_logits(0), random_logits(1)
    answers = scored_answers(IDS, MASK, jnp.zeros(4), teacher, start, group=4)
    again = token_log_probs(start, IDS)
    np.testing.assert_array_equal(answers.old, again)
    model = SimpleNamespace(apply=lambda params, ids: params)
    value, aux = masters_loss(model, start, answers, weight=0.0)
    # So the value is minus the mean advantage of the answers that have tokens.
    mean = float(np.asarray(answers.advantages)[:3].astype(np.float64).mean())
    assert float(value) == pytest.approx(-mean, abs=1e-6)
    assert float(aux.clipped) == 0


def test_no_gradient_flows_to_the_teacher():
    teacher, start = random_logits(0), random_logits(1)
    answers = scored_answers(IDS, MASK, jnp.ones(4), teacher, start, group=4)
    model = SimpleNamespace(apply=lambda params, ids: params)

    def loss(logits):
        return masters_loss(model, start, answers._replace(teacher=logits))[0]

    assert not np.any(jax.grad(loss)(teacher))
