"""Time of an unlearning step beside the step of one joint loss.

python -m experiments.unlearning.cost

The joint step differentiates the sum of both losses and hands it to AdamW; no
transformation can act on the two sides then. Steps take turns on the same random model
and texts, and the fastest pass of each counts.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tyro

from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.process import use_machine
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.loop import step_program
from lt_mia_jax.training.optimizer import make_optimizer
from lt_mia_jax.training.state import TrainState, init_state
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.step import Frozen, PairBatch, TrainableModel, UnlearnStep


@dataclasses.dataclass(frozen=True)
class UnlearningCost:
    """Compare steps."""

    methods: tuple[str, ...] = (
        "grad_diff",
        "simnpo",
        "gu_gradient",
        "gu",
        "graceful_forgetting",
    )
    """Methods beside the joint step; those that need prepared data are left out."""

    width: int = 512
    """Width of the model, of 6 layers."""

    vocabulary: int = 8192
    """Vocabulary entries."""

    batch_size: int = 8
    """Texts of each side."""

    length: int = 128
    """Tokens a text."""

    rounds: int = 5
    """How often the steps take turns."""


@dataclasses.dataclass(frozen=True)
class JointStep:
    """GradDiff with one backward pass."""

    model: Any
    optimizer: OptimizerConfig
    axis: str | None = None

    def __call__(
        self, state: TrainState, batch: PairBatch, key: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        texts, kept = batch.forget, batch.retain
        assert texts is not None
        assert kept is not None

        def loss(params: Any) -> Any:
            forget, _ = objectives.neg_nll(params, texts, apply_fn=self.model.apply)
            retain, _ = objectives.nll(params, kept, apply_fn=self.model.apply)
            return forget + retain

        value, gradient = jax.value_and_grad(loss)(state.params)
        optimizer = make_optimizer(self.optimizer, 0)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, opt_state), metrics


def main() -> None:
    """Measure and print a table."""
    config = tyro.cli(UnlearningCost, description=__doc__)
    use_machine()
    model = LanguageModel(
        gpt2_like(config.vocabulary, config.width, 6, 8, config.length)
    )
    executor, optimizer = make_executor(), OptimizerConfig()
    rng = np.random.default_rng(0)

    def texts() -> TextBatch:
        shape = (config.batch_size, config.length)
        ids = rng.integers(0, config.vocabulary, shape).astype(np.int32)
        ones = np.ones(shape, np.uint8)
        host: Any = (ids, ones, ones, np.ones(config.batch_size, np.float32))
        return TextBatch(*host)

    batch, key = PairBatch(texts(), texts()), executor.place(jax.random.key(1))
    data = {"reference_params": executor.init_sharded(model.init, jax.random.key(2))}

    def program(step: Any, transform: Any) -> Callable[[], None]:
        params = model.init(jax.random.key(0))
        state = [executor.init_sharded(lambda p: init_state(p, transform), params)]
        advance = step_program(step, executor)

        def run() -> None:
            state[0], metrics = advance(state[0], executor.place_batch(batch), key)
            jax.block_until_ready(metrics)

        return run

    joint = JointStep(model, optimizer)
    programs = {"one joint loss": program(joint, make_optimizer(optimizer, 0))}
    for name in config.methods:
        step = UnlearnStep(
            trainable=TrainableModel(model=model),
            method=METHODS[name],
            optimizer=optimizer,
            schedule=Schedule(100, 10),
        )
        frozen = jax.tree_util.Partial(step, Frozen(None, data))
        programs[name] = program(frozen, step.transform())
    best = dict.fromkeys(programs, math.inf)
    for turn in range(config.rounds + 1):
        for name, run in programs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first one compiles
                best[name] = min(best[name], time.perf_counter() - began)
    size = sum(x.size for x in jax.tree.leaves(model.shapes()))
    print(f"{size / 1e6:.1f} M parameters, float32, {len(jax.devices())} devices")
    print("| step | ms | over the joint step |")
    print("| --- | --- | --- |")
    for name, seconds in best.items():
        ratio = seconds / best["one joint loss"]
        print(f"| {name} | {1e3 * seconds:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
