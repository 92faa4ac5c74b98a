"""SEFE: RegLoRA over five tasks, against plain adapters one after another."""

from typing import Any

import jax
import numpy as np
import optax

from experiments.survival.adapters import batches, train_adapters
from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, adam, tiny, train
from lt_mia_jax.arrays import Float
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.transfer.adapt.reglora import add_reglora, reglora_mask, union
from lt_mia_jax.transfer.streams.metrics import bwt

MODEL = tiny(layers=2)
LORA = LoraConfig(rank=8, alpha=16.0)
ADAPTED = lora.Adapted(MODEL, LORA.scale)
ADAM = adam(3e-3)
LAM = 2500.0
KNOWN = [Task("copy", language, 3) for language in range(5)]
TASKS = [
    Task("reverse", 0, 3),
    Task("sort", 1, 3),
    Task("reverse", 2, 3),
    Task("sort", 3, 3),
    Task("reverse", 4, 3),
]
STEPS = 450


def optimizer(lam: float, masks: Any) -> optax.GradientTransformationExtraArgs:
    """The penalty in front of Adam."""
    return optax.chain(add_reglora(masks, lam), ADAM)


# Masks are part of the state: one object, and so one compiled program, for all tasks.
PROGRAM = {lam: optimizer(lam, {}) for lam in (0.0, LAM)}


def success(params: Any, lam: float, seed: int) -> Float[np.ndarray, "K K"]:
    """Accuracy in percent on each task after each, with new adapters for each."""
    pairs = lora.init(jax.random.key(seed), params, LORA)
    protected = reglora_mask(pairs)  # nothing: they change nothing yet
    rows = []
    for number, task in enumerate(TASKS):
        key = jax.random.fold_in(jax.random.key(seed), number)
        pairs = lora.init(key, params, LORA)
        state = optimizer(lam, protected).init(pairs)
        stack = batches(task, 10 * seed + number, STEPS)
        pairs, _, _ = train_adapters(ADAPTED, PROGRAM[lam], params, pairs, state, stack)
        protected = union(protected, reglora_mask(pairs))
        params = lora.merge(params, pairs, LORA.scale)
        rows.append([100 * accuracy(MODEL, params, other) for other in TASKS])
    return np.array(rows)


def run(seed: int) -> Outcome:
    """The same base and batches, without and with the penalty."""
    start = jax.jit(MODEL.init)(jax.random.key(seed))
    params, _ = train(MODEL, start, KNOWN, steps=900, seed=seed, rate=2e-3)
    plain, protected = success(params, 0.0, seed), success(params, LAM, seed)
    new = [float(np.diag(matrix).mean()) for matrix in (plain, protected)]
    transfer = [float(bwt(matrix)) for matrix in (plain, protected)]
    measures = {
        "BWT, plain": transfer[0],
        "BWT, RegLoRA": transfer[1],
        "new tasks, plain": new[0],
        "new tasks, RegLoRA": new[1],
    }
    passed = transfer[1] - transfer[0] >= 3 and new[1] - new[0] >= -1
    return Outcome(measures, passed, precondition=transfer[0] <= -10)


DEMONSTRATION = Demonstration(
    system="SEFE",
    claim="RegLoRA raises backward transfer by at least 3 points, with the accuracy on "
    "new tasks within 1 point.",
    run=run,
    precondition="Backward transfer of plain adapters is -10 points or below.",
)
