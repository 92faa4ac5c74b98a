import json
import logging
import threading
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.sharding import SMALLEST_SHARDED
from lt_mia_jax.training import (
    Checkpointer,
    Cosine,
    MetricsWriter,
    OptimizerConfig,
    TrainState,
    fit,
    init_state,
    make_optimizer,
)

STEPS = 24
KEY = jax.random.key(0)
OPTIMIZER = OptimizerConfig(
    learning_rate=0.05, schedule=Cosine(), warmup_fraction=0.1, clip_norm=1.0
)
TARGET = np.random.default_rng(7).normal(size=(128, 128)).astype(np.float32)
traces = []


@dataclass(frozen=True)
class Regression:
    """A step with noise from its key, and equal to any other one of its rate."""

    noise: float = 0.1

    def __call__(self, state, batch, key):
        traces.append(self)
        optimizer = make_optimizer(OPTIMIZER, STEPS)

        def loss(params):
            x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
            error = x @ params["w"] - batch["y"]
            return (jnp.square(error).mean(axis=1) * batch["weight"]).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics


def batch_at(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(8, 128)).astype(np.float32)
    weight = (np.arange(8) < 8 - step % 3).astype(np.float32)
    return {"x": x, "y": x @ TARGET, "weight": weight}


def start():
    return init_state({"w": jnp.zeros((128, 128))}, make_optimizer(OPTIMIZER, STEPS))


def evaluate(params):
    return {"validation_loss": float(np.square(params["w"] - TARGET).mean())}


def run(directory=None, **changes):
    settings = {
        "total_steps": STEPS,
        "batch_at": batch_at,
        "key": jax.random.key(3),
        "executor": make_executor(data=1),
        "evaluate": evaluate,
        "evaluate_every": 5,
    }
    if directory is not None:
        settings |= {
            "checkpointer": Checkpointer(directory / "state", signature="s"),
            "metrics": MetricsWriter(directory / "history.jsonl"),
            "save_every_seconds": 0.0,
        }
    settings = {"step_fn": Regression(), "state": start(), **settings, **changes}
    return fit(**settings)


@pytest.fixture(scope="module")
def whole():
    return run()


def test_training_learns(whole):
    losses = [row["validation_loss"] for row in whole.history]
    assert [row["step"] for row in whole.history] == [5, 10, 15, 20, 24]
    assert (
        losses[-1]
        < losses[0]
        < evaluate({"w": np.zeros_like(TARGET)})["validation_loss"]
    )


def test_a_plain_loop_gives_the_same(whole):
    state, step = start(), jax.jit(Regression())
    for index in range(STEPS):
        state, _ = step(
            state, batch_at(index), jax.random.fold_in(jax.random.key(3), index)
        )
    np.testing.assert_allclose(
        whole.state.params["w"], state.params["w"], rtol=1e-5, atol=1e-6
    )
    assert int(whole.state.step) == STEPS


def test_one_program_serves_equal_steps(whole):
    before = len(traces)
    run()
    run(total_steps=7)
    assert len(traces) == before


def test_best_is_the_best_evaluation():
    # Less is better, and the loss falls: asking for the most picks the first.
    chosen = run(mode="max")
    early = run(total_steps=5)
    assert chosen.best_step == 5
    np.testing.assert_array_equal(chosen.best["w"], early.state.params["w"])


def test_the_callers_state_stays_valid():
    state = start()
    settings = {"key": jax.random.key(0), "batch_at": batch_at, "total_steps": 2}
    for data in (1, 4):
        fit(Regression(), state, executor=make_executor(data=data), **settings)
        np.testing.assert_array_equal(state.params["w"], np.zeros((128, 128)))


class Killed(Exception):
    pass


def breaking_at(stop):
    def read(step):
        if step >= stop:
            raise Killed
        return batch_at(step)

    return read


@pytest.mark.parametrize("stops", [(1,), (5, 13), (23,)])
def test_resuming_changes_nothing(whole, tmp_path, caplog, stops):
    for stop in stops:
        with pytest.raises(Killed):
            run(tmp_path, batch_at=breaking_at(stop))
    with caplog.at_level(logging.INFO):
        resumed = run(tmp_path)
    assert resumed.resumed_from == stops[-1]
    assert f"resumed from step {stops[-1]} of {STEPS}" in caplog.text
    assert resumed.history == whole.history
    assert resumed.best_step == whole.best_step
    for a, b in zip(
        jax.tree.leaves((resumed.state, resumed.best)),
        jax.tree.leaves((whole.state, whole.best)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    lines = [json.loads(x) for x in (tmp_path / "history.jsonl").open()]
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, STEPS + 1))
    assert tuple(x for x in lines if "validation_loss" in x) == whole.history


def test_an_error_while_reading_ahead_waits_for_its_step(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, batch_at=breaking_at(9), save_every_seconds=3600.0)
    names = {thread.name for thread in threading.enumerate()}
    # The progress bar keeps a thread of its own.
    assert not {x for x in names if x.startswith(("grain", "checkpoint"))}
    lines = [json.loads(x) for x in (tmp_path / "history.jsonl").open()]
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 9))


def test_the_place_in_the_input_is_saved_and_checked(tmp_path):
    run(tmp_path, total_steps=4)
    tree = {"state": start(), "best": start().params}
    with Checkpointer(tmp_path / "state", signature="s") as checkpointer:
        _, tree, meta = checkpointer.restore(tree)
        assert meta["input"] == {"next_index": 4}
        checkpointer.save(6, tree, meta)
    with pytest.raises(InputError, match="step 6 has read input up to"):
        run(tmp_path)


def test_another_mesh_continues(whole, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, batch_at=breaking_at(8), executor=make_executor(data=1, fsdp=4))
    with pytest.raises(Killed):
        run(tmp_path, batch_at=breaking_at(16), executor=make_executor(data=2, fsdp=2))
    resumed = run(tmp_path)
    assert resumed.resumed_from == 16
    np.testing.assert_allclose(
        resumed.state.params["w"], whole.state.params["w"], rtol=1e-5, atol=1e-5
    )


def test_a_finished_run_is_only_read(whole, tmp_path):
    run(tmp_path)
    again = run(tmp_path, batch_at=breaking_at(0))
    assert again.resumed_from == STEPS
    np.testing.assert_array_equal(again.best["w"], whole.best["w"])


def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path):
    def poisoned(step):
        batch = batch_at(step)
        return batch if step < 6 else batch | {"y": batch["y"] * np.inf}

    with pytest.raises(InputError) as error:
        run(tmp_path, batch_at=poisoned)
    for words in ("diverged at step 7", "Lower the learning rate", "of step 6 is kept"):
        assert words in str(error.value)
    assert Checkpointer(tmp_path / "state").steps()[-1] == 6


@dataclass(frozen=True)
class Spoiling:
    """A step that, at one number, makes parameters NaN and shows finite metrics."""

    at: int

    def __call__(self, state, batch, key):
        found, metrics = Regression()(state, batch, key)
        spoiled = jnp.where(found.step == self.at, jnp.nan, found.params["w"])
        return found._replace(params={"w": spoiled}), metrics


@pytest.mark.parametrize(
    ("at", "resumable"), [(9, True), (STEPS, True), (STEPS, False)]
)
def test_an_update_that_spoils_the_parameters(tmp_path, at, resumable):
    where = tmp_path if resumable else None
    with pytest.raises(InputError, match=f"diverged at step {at}: parameters"):
        run(where, step_fn=Spoiling(at), evaluate=None)
    if resumable:
        checkpointer = Checkpointer(tmp_path / "state", signature="s")
        restored = checkpointer.restore({"state": start()})
        assert restored.step == at - 1
        assert np.isfinite(restored.tree["state"].params["w"]).all()


@pytest.mark.parametrize(("data", "fsdp"), [(4, 1), (2, 2)])
def test_sharded_equals_single_device(whole, data, fsdp):
    sharded = run(executor=make_executor(data=data, fsdp=fsdp))
    w = sharded.state.params["w"]
    assert len({str(shard.index) for shard in w.addressable_shards}) == fsdp
    np.testing.assert_allclose(w, whole.state.params["w"], rtol=1e-5, atol=1e-5)
    assert sharded.state.params["w"].sharding == sharded.best["w"].sharding


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_memory_of_the_state_falls_with_fsdp(fsdp):
    model = LanguageModel(gpt2_like(512, width=128, layers=2, heads=4, context=16))
    executor = make_executor("jit", fsdp=fsdp)
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    state = executor.init_sharded(
        lambda key: init_state(model.init(key), optimizer), KEY
    )
    held = {device: 0 for device in jax.devices()}
    for shard in (s for x in jax.tree.leaves(state) for s in x.addressable_shards):
        held[shard.device] += shard.data.nbytes
    leaves = jax.tree.leaves(state)
    large = sum(x.nbytes for x in leaves if x.size >= SMALLEST_SHARDED)
    small = sum(x.nbytes for x in leaves) - large
    assert set(held.values()) == {large // fsdp + small}
    assert small < large / 50
