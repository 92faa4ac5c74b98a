"""`fit`: run a step many times; resumable, deterministic, never waiting for metrics.

Nor for input or for the disk: batches are read ahead and checkpoints are written in
the background.

A step is a pure function `step(state, batch, key) -> (state, metrics)` with scalar
metrics; how it runs on the devices is the executor's business. A step that needs large
arrays which it does not change (a frozen model) is a `jax.tree_util.Partial` that holds
them, so that they are arguments of the compiled program and not constants in it.
Programs are cached by the function: a frozen dataclass with `__call__` shares one
program among all equal configurations.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lt_mia_jax.errors import Diverged, Stopped
from lt_mia_jax.executor import AXIS, Executor, is_primary
from lt_mia_jax.sharding import parameter_shardings
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.preemption import StopRequest
from lt_mia_jax.training.prefetch import Prefetcher
from lt_mia_jax.training.progress import Progress
from lt_mia_jax.training.state import TrainState

logger = logging.getLogger(__name__)

Metrics = dict[str, Any]
Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]


class FitResult(NamedTuple):
    """What training leaves behind."""

    state: TrainState
    """After the last step."""
    best: Any
    """Parameters of the best evaluation; those of `state` without evaluations."""
    best_step: int
    """Updates done when `best` was taken."""
    history: tuple[dict[str, Any], ...]
    """One row an evaluation: `step` and the numbers of `evaluate`."""
    resumed_from: int
    """Updates that an earlier process had already done; 0 for a fresh run."""


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="state")
def _advance(
    step: Any, state: TrainState, batch: Any, key: jax.Array, *, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """One step; the state keeps its layout, so the next call fits the program."""
    shardings = parameter_shardings(state, mesh)
    new_state, metrics = step(state, batch, jax.random.fold_in(key, state.step))
    return jax.lax.with_sharding_constraint(new_state, shardings), metrics


@functools.lru_cache(maxsize=8)
def _advance_by_device(mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """The same under `pmap`: arguments and results whole, but for the batch."""

    def advance(step: Any, state: TrainState, batch: Any, key: jax.Array) -> Any:
        return step(state, batch, jax.random.fold_in(key, state.step))

    return jax.pmap(
        advance,
        axis_name=AXIS,
        in_axes=(None, None, 0, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=1,
    )


def step_program(step_fn: Step, executor: Executor) -> Step:
    """The compiled step (state, batch, key) to (state, metrics); consumes the state.

    State and batch come from the executor's `copy` and `place_batch`.

    Raises:
      ValueError: under `pmap`, a step without the executor's axis.
    """
    # A Partial of a Partial would be hashed by identity and never share a program.
    partial = isinstance(step_fn, jax.tree_util.Partial)
    step = step_fn if partial else jax.tree_util.Partial(step_fn)
    if executor.axis is None:
        return functools.partial(_advance, step, mesh=executor.mesh)
    found = getattr(step.func, "axis", None)
    # Otherwise each device would go its own way, and one of them would be believed.
    if found != executor.axis:
        raise ValueError(
            f"under pmap a step adds over the axis {executor.axis!r}, {step.func!r} "
            f"has axis = {found!r}; build it with axis=executor.axis"
        )
    return functools.partial(_advance_by_device(executor.mesh), step)


def fit(
    step_fn: Step,
    state: TrainState,
    *,
    total_steps: int,
    batch_at: Callable[[int], Any],
    key: jax.Array,
    executor: Executor,
    label: str = "training",
    revise: Callable[[Any, Any, int], Any] | None = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    monitor: str = "validation_loss",
    mode: Literal["min", "max"] = "min",
    checkpointer: Checkpointer | None = None,
    save_every_seconds: float = 60.0,
    metrics: MetricsWriter | None = None,
) -> FitResult:
    """Run `step_fn` until `total_steps` updates are done.

    Step `s` gets `batch_at(s)` and the key `fold_in(key, s)`, so a resumed run
    repeats an uninterrupted one exactly. Step `s + 1` is started before the metrics
    of step `s` are read. With `evaluate` the parameters of the best evaluation are
    kept; of equal ones the earliest.

    Args:
      step_fn: see the module; its metrics must hold `loss`. Give it a metric that is
        not finite when its gradients are not (such as their norm).
      state: the start; its arrays are copied, not donated.
      total_steps: updates in the whole run.
      batch_at: this process's host rows of a step, whose leading axis its devices
        divide. Called once a step, in order, from a thread that is up to three steps
        ahead. A program is compiled for every shape.
      key: seed of all randomness inside steps.
      executor: the devices, and how they run a step.
      label: shown beside the progress bar.
      revise: gets the present parameters, the rows and the number of every step, and
        gives the rows that the step reads: answers that these parameters sample, for
        example. A pure function, so that a resumed run repeats it.
      evaluate: numbers of the given parameters, on the host.
      evaluate_every: updates between evaluations; the last update is always
        followed by one.
      monitor: which number of `evaluate` decides what is best.
      mode: whether less or more of it is better.
      checkpointer: saves here and resumes from here. With it, SIGTERM ends the run
        after the current step, which is saved.
      save_every_seconds: least time between saves, which is stretched when the loop
        has to wait for them (at most 5 % of the time); 0 saves after every step. The
        last step is always saved.
      metrics: gets one row a step and one an evaluation.

    Raises:
      InputError: a loss, gradient norm or evaluation is not finite (the message names
        the step); the checkpoint does not fit; or `batch_at` raised it.
      Stopped: by SIGTERM; the same call continues.
    """
    sharded = executor.copy(state)
    del state  # or its arrays would live as long as the run
    key = executor.place(key)
    advance = step_program(step_fn, executor)
    tracker = _Tracker(monitor, mode)
    best = executor.copy(sharded.params) if evaluate is not None else None

    def saved_tree() -> Any:
        return {"state": sharded} | ({} if evaluate is None else {"best": best})

    start, position = 0, None
    if checkpointer is not None:
        restored = checkpointer.restore(saved_tree())
        if restored is not None:
            start = restored.step
            sharded = restored.tree["state"]
            best = restored.tree.get("best")
            if evaluate is not None:
                tracker.load(restored.meta["tracker"])
            position = restored.meta["input"]
            logger.info("%s: resumed from step %d of %d", label, start, total_steps)
    if not is_primary():
        metrics = None
    if metrics is not None:
        metrics.rewind(start)

    clock = _SaveClock(save_every_seconds)
    pending: tuple[int, Metrics] | None = None
    bar = Progress(label, total_steps, "step", done=start)

    def settle() -> None:
        """Read the metrics of the last step that was started."""
        nonlocal pending
        if pending is None:
            return
        (done, device_values), pending = pending, None
        values = {name: float(x) for name, x in jax.device_get(device_values).items()}
        _check_finite(values, done, label, checkpointer)
        if metrics is not None:
            metrics.write({"step": done, **values})
        bar.update(loss=f"{values['loss']:.4f}")

    with contextlib.ExitStack() as stack:
        stopping = StopRequest()
        if checkpointer is not None:
            stack.enter_context(stopping)
            stack.enter_context(checkpointer)
        if metrics is not None:
            stack.callback(metrics.close)
        stack.callback(bar.close)
        reader = stack.enter_context(
            Prefetcher(batch_at, max(start, total_steps), start=start, state=position)
        )
        for index in range(start, total_steps):
            rows = next(reader)
            if revise is not None:
                rows = revise(sharded.params, rows, index)
            batch = executor.place_batch(rows)
            sharded, device_values = advance(sharded, batch, key)
            settle()
            done = index + 1
            pending = (done, device_values)
            last = done == total_steps
            on_time = evaluate_every is not None and done % evaluate_every == 0
            if evaluate is not None and (on_time or last):
                settle()
                row = {"step": done, **evaluate(sharded.params)}
                _check_finite(row, done, label, checkpointer)
                if metrics is not None:
                    metrics.write(row)
                if tracker.better(row):
                    best = executor.copy(sharded.params)
            stop = checkpointer is not None and stopping.reached()
            saving = checkpointer is not None and (stop or clock.due(done))
            if last or saving:
                settle()
                # An update can spoil what its own loss and gradient do not show.
                if not bool(_all_finite(sharded.params)):
                    _raise_diverged("parameters", done, label, checkpointer)
            if checkpointer is not None and (last or saving):
                if metrics is not None:
                    metrics.flush()
                with clock:
                    meta: dict[str, Any] = {"input": reader.state()}
                    if evaluate is not None:
                        meta["tracker"] = tracker.dump()
                    checkpointer.save(done, saved_tree(), meta)
                if stop:
                    checkpointer.wait()
                    raise Stopped(done)
        settle()
        if checkpointer is not None:
            checkpointer.wait()
    return FitResult(
        state=sharded,
        best=sharded.params if evaluate is None else best,
        best_step=total_steps if evaluate is None else tracker.step,
        history=tuple(tracker.rows),
        resumed_from=start,
    )


class _Tracker:
    """The evaluations so far and which was best."""

    def __init__(self, monitor: str, mode: Literal["min", "max"]):
        self.monitor, self.sign = monitor, 1.0 if mode == "min" else -1.0
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.lowest: float | None = None

    def better(self, row: dict[str, Any]) -> bool:
        self.rows.append(row)
        value = self.sign * row[self.monitor]
        if self.lowest is not None and value >= self.lowest:
            return False
        self.step, self.lowest = row["step"], value
        return True

    def dump(self) -> dict[str, Any]:
        return {"rows": self.rows, "step": self.step, "lowest": self.lowest}

    def load(self, saved: dict[str, Any]) -> None:
        self.rows, self.step = list(saved["rows"]), saved["step"]
        self.lowest = saved["lowest"]


class _SaveClock:
    """Decides when to save; processes follow the first one's clock.

    What counts is the time that the loop waits, not the writing in the background.
    """

    CHECK_EVERY = 16
    """Steps between questions to the first process, when there are several."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.cost = 0.0
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        if self.seconds == 0:
            return True
        waited = time.monotonic() - self.saved_at
        due = waited >= max(self.seconds, 19 * self.cost)
        if jax.process_count() == 1:
            return due
        if step % self.CHECK_EVERY:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - self.began


def _check_finite(
    values: dict[str, Any], step: int, label: str, checkpointer: Checkpointer | None
) -> None:
    wrong = [f"{name} = {x}" for name, x in values.items() if not math.isfinite(x)]
    if wrong:
        _raise_diverged(", ".join(wrong), step, label, checkpointer)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(found))


def _raise_diverged(
    wrong: str, step: int, label: str, checkpointer: Checkpointer | None
) -> NoReturn:
    kept = ""
    if checkpointer is not None:
        checkpointer.wait()
        for step_kept in checkpointer.steps()[-1:]:
            kept = (
                f" The checkpoint of step {step_kept} is kept; other settings need "
                "another folder."
            )
    raise Diverged(
        f"{label} diverged at step {step}: {wrong}, expected finite numbers. Lower "
        f"the learning rate or clip gradients.{kept}"
    )
