"""Every method: what it does to the losses, families of models, devices."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearning_world as world
from unlearning_world import FAST, answer_loss, history, run, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.training.state import init_state
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning.methods import METHODS, GeometricUnlearning
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.step import Frozen, PairBatch, TrainableModel, UnlearnStep

EVERYTHING = "LT_MIA_EVERY_METHOD" in os.environ
"""Run every method, on every family: about a quarter of an hour."""


@pytest.fixture(autouse=True)
def _programs_do_not_pile_up():
    """Of every method they are more than the memory maps of a process."""
    yield
    if EVERYTHING:
        jax.clear_caches()


INTERVENED = [name for name in METHODS if METHODS[name].intervention() is not None]
"""They have tests of their own, in test_intervened.py."""
READ = [name for name in METHODS if name != "purge"]
"""Methods that read the answers; test_purge.py is about the one that samples them."""
FORGETS = [n for n in READ if n not in ("retrain", "undial", *INTERVENED)]
if not EVERYTHING:  # one of each kind of objective and of transformation
    FORGETS = ["npo", "rmu", "salun", "guard", "graceful_forgetting"]


@pytest.mark.parametrize("name", FORGETS)
def test_forget_loss_rises(name, tmp_path):
    method = METHODS[name]
    config = FAST
    if name == "pdu":  # from its first step on 100 times the retain loss
        method = dataclasses.replace(method, initial=0.1)
    if name in ("rmu", "salun", "sure"):
        config = dataclasses.replace(FAST, epochs=12)
    texts = world.forget_texts().answers
    before = answer_loss(start(), texts)
    result = run(tmp_path, method, config=config)
    steps = history(tmp_path)
    # They move streams, or flatten: of a model at chance the loss need not follow.
    if name in ("rmu", "pdu"):
        assert steps[-1]["forget_loss"] < steps[0]["forget_loss"]
    else:
        assert answer_loss(result.params, texts) > before + 0.005
    assert [row["step"] for row in steps] == list(range(1, result.steps + 1))
    assert all(np.isfinite(list(row.values())).all() for row in steps)


def test_undial_lowers_the_true_token(tmp_path):
    # Its aim is a small probability of the true token, whatever the loss at the start.
    texts = world.forget_texts().answers
    result = run(tmp_path, "undial")

    def mean_logit(params):
        logits = world.model().apply(params, texts.input_ids)
        centered = logits - logits.mean(-1, keepdims=True)
        true = jnp.take_along_axis(centered[:, :-1], texts.input_ids[:, 1:, None], -1)
        return float(true[..., 0][texts.label_mask[:, 1:] == 1].mean())

    assert mean_logit(result.params) < mean_logit(start())


def test_retraining_learns_what_is_kept(tmp_path):
    result = run(tmp_path, "retrain")
    before, after = (answer_loss(p, world.RETAIN) for p in (start(), result.params))
    assert after < before - 0.05
    assert all("forget_loss" not in row for row in history(tmp_path))


@pytest.mark.parametrize("family", world.MODELS)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "guard_it"])
def test_every_method_fits_every_family(name, family):
    """Traced and not compiled: shapes, data and states of all of them fit."""
    model, method = world.model(family), METHODS[name]
    method = method.fitted(model.config)
    step = UnlearnStep(
        trainable=TrainableModel(model=model, intervention=method.intervention()),
        method=method,
        optimizer=FAST.optimizer,
        schedule=Schedule(12, 3),
    )
    texts, retain = (
        TextBatch(*rows[:3], np.ones(4, np.float32))
        for rows in (world.answers(0, 4), world.answers(1, 4))
    )
    reference = np.ones((4, world.LENGTH), np.float32)
    if method.cached_reference:
        texts = texts._replace(reference_nll=reference)
    if name == "purge":
        gains = np.ones(4, np.float32)
        texts = texts._replace(reference_nll=reference, advantages=gains, rewards=gains)
    if method.alternative:
        texts = texts._replace(alternative=texts)
    data = {"control": jnp.ones(model.config.width)}

    def update(params, texts, retain):
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
        base, trained = None, params
        if name == "mrp":
            rows = jnp.ones((len(method.layers), method.rows, model.config.width))
            base, trained = params, {"rows": rows, "earlier": rows}
        state = init_state(trained, step.transform({"mask": mask}))
        frozen = Frozen(base, {**data, "reference_params": params})
        return state, step(frozen, state, PairBatch(texts, retain), jax.random.key(0))

    state, (after, metrics) = jax.eval_shape(update, model.shapes(), texts, retain)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    assert all(x.shape == () for x in metrics.values())


@pytest.mark.skipif(not EVERYTHING, reason="LT_MIA_EVERY_METHOD runs them")
@pytest.mark.parametrize("family", [name for name in world.MODELS if name != "gpt2"])
@pytest.mark.parametrize("name", READ)
def test_every_method_runs_on_every_family(name, family, tmp_path):
    config = dataclasses.replace(FAST, epochs=3 if name == "graceful_forgetting" else 1)
    if name == "causal_layer_unlearning" and family == "mamba":
        with pytest.raises(InputError, match="has none"):
            run(tmp_path, name, family=family, config=config)
        return
    if name == "guard_it":
        name = dataclasses.replace(METHODS[name], threshold=0.5)
    result = run(tmp_path, name, family=family, config=config)
    if result.intervention is not None:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.intervention))
        return
    pairs = zip(
        jax.tree.leaves(result.params), jax.tree.leaves(start(family)), strict=True
    )
    assert any(bool((a != b).any()) for a, b in pairs)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(result.params))


def losses_and_params(folder, name, executor):
    config = dataclasses.replace(FAST, epochs=3 if name == "graceful_forgetting" else 2)
    method = METHODS[name]
    if isinstance(method, GeometricUnlearning):
        # At 4.5 its loss is flat here, and all of it rounding.
        method = dataclasses.replace(method, beta=0.5)
    result = run(folder, method, config=config, executor=executor)
    found = [row["loss"] for row in history(folder)]
    if name == "mrp":  # of the basis only the span means anything
        q = np.asarray(result.intervention.stacked.rows)
        return np.array(found), {"projector": q.swapaxes(1, 2) @ q}
    return np.array(found), flatten(result.params)


DEVICES = [name for name in READ if name != "guard_it"]


@pytest.mark.parametrize("name", DEVICES if EVERYTHING else ["npo", "gu"])
def test_devices_do_not_matter(name, tmp_path):
    # Adam's first steps are signs: where a gradient is rounding, so is its sign.
    losses, params = losses_and_params(tmp_path / "one", name, make_executor("single"))
    for label, executor in {
        "data": make_executor("jit"),
        "fsdp": make_executor("jit", fsdp=4),
        "pmap": make_executor("pmap"),
    }.items():
        other_losses, other = losses_and_params(tmp_path / label, name, executor)
        np.testing.assert_allclose(
            other_losses,
            losses,
            rtol=1e-5,
            atol=1e-5 * abs(losses).max(),
            err_msg=label,
        )
        far = {
            n: float((abs(np.asarray(other[n]) - np.asarray(params[n])) > 1e-5).mean())
            for n in params
            # Attention does not depend on it: its gradient is nothing but rounding.
            if not n.endswith("key/bias")
        }
        assert max(far.values()) < 0.01, (label, far)


def test_devices_do_not_matter_for_what_is_fitted(tmp_path):
    method = dataclasses.replace(METHODS["guard_it"], threshold=0.5)
    one = run(tmp_path / "one", method).intervention
    for label, executor in {
        "data": make_executor("jit"),
        "fsdp": make_executor("jit", fsdp=4),
        "pmap": make_executor("pmap"),
    }.items():
        other = run(tmp_path / label, method, executor=executor).intervention
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=label)
