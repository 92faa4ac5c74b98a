"""Runs: resuming, adapters, what a method may ask for, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unlearning_world as world
from unlearning_world import FAST, run, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig
from lt_mia_jax.training.state import init_state
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.methods import Method
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.step import Frozen, PairBatch, TrainableModel, UnlearnStep


@pytest.mark.parametrize("name", ["npo", "mrp"])
def test_continues_exactly(name, tmp_path):
    class Killed(Exception):
        pass

    whole = run(tmp_path / "whole", name)
    config = dataclasses.replace(FAST)
    from lt_mia_jax.unlearning import train

    original = train.UnlearningBatches.batch_at
    calls = []

    def failing(self, step):
        calls.append(step)
        if step == 5 and calls.count(5) == 1:
            raise Killed
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.UnlearningBatches, "batch_at", failing)
        with pytest.raises(Killed):
            run(tmp_path / "part", name, config=config, save_every_seconds=0.0)
    result = run(tmp_path / "part", name, config=config)
    assert result.resumed_from > 0
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, result.intervention, whole.intervention)


def test_adapters_leave_the_base(tmp_path):
    config = dataclasses.replace(FAST, lora=LoraConfig(rank=2))
    result = run(tmp_path, "kl_min", config=config)
    assert result.adapters
    base, merged = flatten(start()), flatten(result.params)
    adapted = {n for n in base if (np.asarray(base[n]) != np.asarray(merged[n])).any()}
    assert adapted == set(result.adapters)


def _value(method):
    return dataclasses.dataclass(frozen=True, kw_only=True)(method)


def test_a_method_may_look_at_the_gradient_nearby():
    @_value
    class Sharp(Method):
        retain_weight: float = 0.0

        def transform(self, optimizer, schedule, arrays):
            return transforms.sharpness_aware(optax.sgd(0.5), radius=0.1)

    step = UnlearnStep(
        trainable=TrainableModel(model=world.model()),
        method=Sharp(),
        optimizer=FAST.optimizer,
        schedule=Schedule(1, 1),
    )
    texts = TextBatch(*map(jnp.asarray, world.answers(0, 4)[:3]), jnp.ones(4))
    state = init_state(start(), step.transform())
    key = jax.random.key(0)
    after, _ = jax.jit(step)(Frozen(None, {}), state, PairBatch(texts, None), key)

    @jax.jit
    @jax.grad
    def slope(params):
        return objectives.neg_nll(params, texts, apply_fn=world.model().apply)[0]

    near = slope(start())
    length = np.sqrt(
        sum(float((np.float64(g) ** 2).sum()) for g in jax.tree.leaves(near))
    )
    moved = jax.tree.map(lambda p, g: p + 0.1 / length * g, start(), near)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, start(), slope(moved))
    plain = jax.tree.map(lambda p, g: p - 0.5 * g, start(), near)
    found, expected, plain = map(flatten, (after.params, expected, plain))
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    assert max(np.abs(found[n] - plain[n]).max() for n in plain) > 1e-4


def test_a_method_may_measure_by_adams_second_moment(tmp_path):
    @_value
    class Subspace(Method):
        metric: str = "adam"

        def transform(self, optimizer, schedule, arrays):
            project = transforms.retain_subspace_projection(size=2, metric=self.metric)
            return optax.chain(project, self.combine(schedule), optimizer)

    found = [
        run(tmp_path / metric, Subspace(metric=metric)).params
        for metric in ("adam", "euclidean")
    ]
    leaves = [jax.tree.leaves(params) for params in found]
    assert all(np.isfinite(x).all() for x in leaves[0])
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*leaves, strict=True)
    )


def test_compiled_once(tmp_path):
    traced = []

    class Counting(Method):
        def forget(self):
            traced.append(1)
            return super().forget()

    counting = dataclasses.dataclass(frozen=True, kw_only=True)(Counting)()
    run(tmp_path / "a", counting)
    first = len(traced)
    other = dataclasses.replace(FAST, seed=1, learning_rate=FAST.learning_rate / 2)
    run(tmp_path / "b", counting, config=other)
    # The step is traced in the first run only; the rest asks for data and terms.
    assert len(traced) - first < first


def test_missing_and_empty_texts(tmp_path):
    nothing = world.answers(0, 6).take(np.arange(0))
    bare = world.forget_texts()._replace(refusals=(), inverted=())
    cases = {
        "Npo needs texts to keep": ("npo", {"retain": None}),
        "Retrain needs texts to keep": ("retrain", {"retain": nothing}),
        "no text to forget": (
            "grad_ascent",
            {"forget": bare._replace(answers=nothing)},
        ),
        "'refusal' in every row": ("idk_dpo", {"forget": bare}),
        "'inverted' in every row": ("meow", {"forget": bare}),
    }
    for message, (name, options) in cases.items():
        with pytest.raises(InputError, match=message):
            run(tmp_path / name, name, **options)
    config = dataclasses.replace(FAST, lora=LoraConfig(rank=2))
    with pytest.raises(InputError, match="leave --lora out"):
        run(tmp_path / "lora", "salun", config=config)
    with pytest.raises(InputError, match="Mrp trains no weights; leave --lora out"):
        run(tmp_path / "lora", "mrp", config=config)
    for name in ("mrp", "guard_it"):
        with pytest.raises(InputError, match="needs texts to keep"):
            run(tmp_path / name, name, retain=None)
    assert not list(tmp_path.rglob("history.jsonl"))


def test_a_run_too_short_for_graceful_forgetting_is_refused(tmp_path):
    config = dataclasses.replace(FAST, epochs=1, batch_size=2)  # three steps
    with pytest.raises(InputError, match="every 5th step, and this run has 3"):
        run(tmp_path, "graceful_forgetting", config=config)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    config = dataclasses.replace(FAST, learning_rate=1e15, epochs=20)
    with pytest.raises(InputError, match=r"unlearning diverged.*checkpoint.*kept"):
        run(tmp_path, "grad_ascent", config=config, save_every_seconds=0.0)
