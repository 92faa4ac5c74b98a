"""Train adapters of the toy zoo beside a base that is data of the program."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from experiments.survival.toy import Task, Texts, answer_loss
from lt_mia_jax.arrays import Array, Float


@functools.partial(jax.jit, static_argnums=0)
def adapted_loss(model: Any, base: Any, adapters: Any, texts: Texts) -> Array:
    """`answer_loss` of a base with adapters; `model` is a `finetune.lora.Adapted`."""
    return answer_loss(model, {"base": base, "adapters": adapters}, texts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_adapters(
    model: Any, optimizer: Any, base: Any, adapters: Any, state: Any, stack: Texts
) -> tuple[Any, Any, Float[Array, "steps"]]:
    """One update for each of the stacked batches: adapters, state and losses."""

    def step(carry: tuple[Any, Any], texts: Texts) -> tuple[tuple[Any, Any], Array]:
        adapters, state = carry
        of_adapters = functools.partial(adapted_loss, model, base)
        value, gradient = jax.value_and_grad(of_adapters)(adapters, texts)
        updates, state = optimizer.update(gradient, state, adapters)
        return (optax.apply_updates(adapters, updates), state), value

    (adapters, state), values = jax.lax.scan(step, (adapters, state), stack)
    return adapters, state, values


def batches(task: Task, seed: int, steps: int, rows: int = 32) -> Texts:
    """Random texts of a task, stacked for `train_adapters`."""
    rng = np.random.default_rng((seed, 3))
    parts = [task.texts(rng, rows) for _ in range(steps)]
    return jax.tree.map(lambda *x: np.stack(x), *parts)
