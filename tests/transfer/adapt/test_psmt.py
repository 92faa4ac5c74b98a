"""Two steps of both variants, on a linear classifier, against NumPy in float64."""

import doctest
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.training.fisher import diagonal_fisher
from lt_mia_jax.transfer.adapt import psmt
from lt_mia_jax.transfer.adapt.psmt import (
    PsmtConfig,
    predicted_nll,
    psmt_init,
    psmt_step,
    symmetric_cross_entropy,
)

RATE = 0.3
SGD = optax.sgd(RATE)


def linear(params, x):
    return x @ params["w"]


def setting(seed=0):
    rng = np.random.default_rng(seed)
    source = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
    fisher = {"w": jnp.asarray(rng.random((6, 4)), jnp.float32)}
    batches = [
        tuple(jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 5, 6)))
        for _ in range(3)
    ]
    return source, fisher, batches


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def loss(w, teacher, views, a):
    """Mean over views and texts of the symmetric cross-entropy."""
    log_t = log_softmax(views[0] @ teacher)
    parts = []
    for x in views:
        log_s = log_softmax(x @ w)
        for s, t in zip(log_s, log_t, strict=True):
            forward = -np.sum(np.exp(t) * s)
            parts.append((1 - a) * forward - a * np.sum(np.exp(s) * t))
    return np.mean(parts)


def slope(f, w):
    """By central differences."""
    g = np.zeros_like(w)
    for index in np.ndindex(*w.shape):
        e = np.zeros_like(w)
        e[index] = 1e-5
        g[index] = (f(w + e) - f(w - e)) / 2e-5
    return g


def oracle(source, fisher, batches, config):
    student, teacher, previous = source.copy(), source.copy(), source.copy()
    size = source.size
    order = np.argsort(-fisher, axis=None)[: round((1 - config.q) * size)]
    protected = np.zeros(size, bool)
    protected[order] = True
    protected = protected.reshape(source.shape)
    answers = []
    for clean, augmented in batches:
        paper = config.variant == "paper"
        views = [clean, augmented if paper else clean]
        own, answer = clean @ student, clean @ teacher
        answers.append(answer if paper else answer + own)
        g = slope(lambda w: loss(w, teacher, views, config.balance), student)  # noqa: B023
        anchor = previous if paper else source
        g = g + 2 * config.lam * fisher * (student - anchor)
        previous = student.copy()
        student = student - RATE * g
        if paper:
            mean = config.eta * teacher + (1 - config.eta) * student
            teacher = np.where(protected, teacher, mean)
            continue
        reset = np.argsort(g**2, axis=None)[: round(config.reset * size)]
        student.ravel()[reset] = source.ravel()[reset]
        decay = config.eta**2
        teacher = decay * teacher + (1 - decay) * student
        teacher.ravel()[reset] = source.ravel()[reset]
    return student, teacher, answers


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_steps_are_those_of_the_definition(variant):
    source, fisher, batches = setting()
    config = PsmtConfig(
        linear, SGD, lam=0.4, eta=0.9, q=0.7, reset=0.25, balance=0.3, variant=variant
    )
    state, answers = psmt_init(source, fisher, config), []
    step = jit(lambda s, b: psmt_step(s, b, config=config))
    for batch in batches:
        state, logits = step(state, batch)
        answers.append(logits)
    wide = [tuple(np.asarray(x, np.float64) for x in b) for b in batches]
    arrays = (np.asarray(x["w"], np.float64) for x in (source, fisher))
    student, teacher, expected = oracle(*arrays, wide, config)
    np.testing.assert_allclose(state.student["w"], student, atol=1e-5)
    np.testing.assert_allclose(state.teacher["w"], teacher, atol=1e-5)
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def test_the_variants_differ_in_what_they_hold():
    """Trap: paper and code disagree on the anchor and on what the mask protects."""
    source, fisher, batches = setting(1)
    common = {"lam": 0.4, "eta": 0.9, "q": 0.5, "reset": 0.5}
    paper = PsmtConfig(linear, SGD, **common)
    released = replace(paper, variant="released")
    states = {c: psmt_init(source, fisher, c) for c in (paper, released)}
    for batch in batches:
        states = {c: psmt_step(s, batch, config=c)[0] for c, s in states.items()}
    # Paper: the teacher is still where the information is large, and only there.
    large = np.asarray(fisher["w"] >= jnp.median(fisher["w"]))
    moved = np.asarray(states[paper].teacher["w"] != source["w"])
    np.testing.assert_array_equal(moved, ~large)
    assert (np.asarray(states[paper].student["w"]) != source["w"]).all()
    # Released: both models are at the source on one set, whatever the information.
    at_source = np.asarray(states[released].student["w"] == source["w"])
    np.testing.assert_array_equal(
        at_source, np.asarray(states[released].teacher["w"] == source["w"])
    )
    assert at_source.sum() == 12
    assert (at_source != large).any()


def test_without_pull_and_mask_it_is_a_mean_teacher():
    source, fisher, batches = setting(2)
    config = PsmtConfig(linear, SGD, lam=0.0, eta=0.9, q=1.0)
    state = psmt_init(source, fisher, config)
    student = teacher = source
    for batch in batches:
        answer = linear(teacher, batch[0])

        def objective(p, batch=batch, answer=answer):
            parts = [symmetric_cross_entropy(linear(p, x), answer) for x in batch]
            return (jnp.mean(parts[0]) + jnp.mean(parts[1])) / 2

        g = jax.grad(objective)(student)
        student = jax.tree.map(lambda p, d: p - RATE * d, student, g)
        teacher = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, teacher, student)
        state, logits = psmt_step(state, batch, config=config)
        np.testing.assert_allclose(logits, answer, atol=1e-5)
    np.testing.assert_allclose(state.student["w"], student["w"], atol=1e-5)
    np.testing.assert_allclose(state.teacher["w"], teacher["w"], atol=1e-5)
    # Nothing moves without learning, in either form.
    for variant in ("paper", "released"):
        still = replace(config, optimizer=optax.sgd(0.0), variant=variant)
        after, _ = psmt_step(psmt_init(source, fisher, still), batches[0], config=still)
        for tree in (after.student, after.teacher):
            np.testing.assert_allclose(tree["w"], source["w"], rtol=1e-6)


def test_the_state_may_be_donated_and_the_source_lives_on():
    source, fisher, batches = setting(3)
    config = PsmtConfig(linear, SGD)
    step = jax.jit(psmt_step, static_argnames="config", donate_argnums=0)
    state = psmt_init(source, fisher, config)
    for batch in batches:
        state, _ = step(state, batch, config=config)
    assert np.isfinite(source["w"]).all()
    assert np.isfinite(fisher["w"]).all()


def test_the_information_is_that_of_the_predicted_labels():
    source, _, batches = setting(4)
    x = batches[0][0]
    found = diagonal_fisher(predicted_nll(linear), source, [x])["w"]
    expected = 0.0
    for row in np.asarray(x, np.float64):
        p = np.exp(log_softmax(row[None] @ np.asarray(source["w"], np.float64)))[0]
        p[p.argmax()] -= 1
        expected = expected + np.outer(row, p) ** 2 / len(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_settings_outside_their_ranges_are_refused():
    with pytest.raises(
        InputError, match=r"psmt: lam = -1, expected 0 or more; eta = 2"
    ):
        PsmtConfig(linear, SGD, lam=-1.0, eta=2.0)


def test_examples():
    found = doctest.testmod(psmt)
    assert found.attempted > 2
    assert not found.failed
