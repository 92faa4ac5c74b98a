"""Small runs of everything that executors run, as a program of its own.

python executor_worker.py OUT HOST:PORT,ID,COUNT|off KIND:DATAxFSDP...

Writes OUT/KIND:DATAxFSDP.npz: features, and of fine-tuning and attack training the
losses of 20 steps and the first gradient (Adam's first moment, linear in it).
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from attack_stores import SMALL, MemoryStore, recipe
from jax.sharding import Mesh
from oracle_finetune import random_texts

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned import optimizer as attack_optimizer
from lt_mia_jax.attacks.learned.packing import read_batch
from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.attacks.learned.train import TrainStep, _batches
from lt_mia_jax.executor import (
    Executor,
    fetch,
    initialize,
    is_primary,
    make_executor,
)
from lt_mia_jax.features.extract import ExtractConfig, extract
from lt_mia_jax.finetune.step import TokenStep, batches
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like
from lt_mia_jax.training import (
    MetricsWriter,
    OptimizerConfig,
    fit,
    init_state,
    make_optimizer,
)

VOCABULARY, WIDTH, LENGTH, STEPS = 512, 64, 16, 20
MODEL = LanguageModel(gpt2_like(VOCABULARY, WIDTH, 2, 4, LENGTH))
ATTACK = classifier.ClassifierConfig(
    **{**vars(SMALL), "width": 64, "feed_forward": 256, "dropout": 0.0}
)


def texts(n, seed):
    return random_texts(n, seed=seed, length=LENGTH, vocab=VOCABULARY)


def features(executor, directory):
    target, reference = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))
    # Larger than they start, for logits that differ.
    target, reference = (
        jax.tree.map(lambda x: np.asarray(5 * x), p) for p in (target, reference)
    )
    encoded = texts(37, seed=3)
    store = extract(
        MODEL,
        target,
        MODEL,
        reference,
        encoded,
        ids=[f"id{i}" for i in range(37)],
        labels=np.arange(37) % 2,
        texts=["text"] * 37,
        lower=texts(37, seed=4),
        out_dir=directory / "store",
        config=ExtractConfig(k=5, batch_size=8, block_batches=1),
        executor=executor,
    )
    values, mask = store.features()
    ranks = store.statistics()
    return {
        "features": values,
        "mask": mask,
        "target_rank": ranks.target_rank,
        "reference_rank": ranks.reference_rank,
        "lower_loss": store.lower_loss,
    }


def losses_and_gradient(step, state, batch_at, executor, directory):
    def run(steps, name):
        return fit(
            step,
            state,
            total_steps=steps,
            batch_at=batch_at,
            key=jax.random.key(9),
            executor=executor,
            metrics=MetricsWriter(directory / name),
        )

    first = fetch(optax.tree.get(run(1, "first.jsonl").state.opt_state, "mu"))
    run(STEPS, "losses.jsonl")
    if not is_primary():
        return None, None
    lines = (directory / "losses.jsonl").read_text().splitlines()
    losses = np.array([json.loads(line)["loss"] for line in lines])
    return losses, np.concatenate([np.ravel(x) for x in jax.tree.leaves(first)])


def finetuning(executor, directory):
    optimizer = OptimizerConfig(learning_rate=1e-3)
    _, batch_at = batches(
        texts(50, seed=1), 12, seed=0, epochs=STEPS, executor=executor
    )
    step = TokenStep(MODEL, optimizer, 0, axis=executor.axis)
    start = functools.partial(init_state, optimizer=make_optimizer(optimizer, 0))
    params = executor.init_sharded(MODEL.init, jax.random.key(5))
    state = executor.init_sharded(start, params)
    partial = jax.tree_util.Partial(step, None)
    return losses_and_gradient(partial, state, batch_at, executor, directory)


def attack(executor, directory):
    store = MemoryStore("a", 300, seed=1)
    store.mask[:5] = False  # texts without a step take no part
    rows = Rows([store], "train")
    settings = recipe(schedule="none", balance="plain", pairwise_weight=0.1)
    batches_ = _batches(rows, 36, settings)  # eight devices fill them up
    step = TrainStep.of(ATTACK, settings, 4, executor.axis)
    start = functools.partial(
        init_state, optimizer=attack_optimizer.make_optimizer(settings, 4)
    )
    params = jax.tree.map(np.asarray, classifier.init(ATTACK, jax.random.key(2)))
    params, constants = classifier.split_constants(params)
    return losses_and_gradient(
        jax.tree_util.Partial(step, executor.place(constants)),
        executor.init_sharded(start, params),
        lambda index: read_batch(rows, batches_(index % 4), executor, packed=True),
        executor,
        directory,
    )


def everything(executor: Executor, directory: Path) -> dict[str, np.ndarray]:
    numbers = executor.place_rows(executor.share(np.arange(16)))
    found = {"order": fetch(numbers), **features(executor, directory)}
    for name, run in (("finetune", finetuning), ("attack", attack)):
        losses, gradient = run(executor, directory / name)
        found |= {f"{name}_losses": losses, f"{name}_gradient": gradient}
    return found


TURNED = "turned-"


def turned(executor: Executor) -> Executor:
    """The same devices, those of the processes by turns."""
    mesh = executor.mesh
    each = mesh.devices.reshape(jax.process_count(), -1)
    devices = each.T.reshape(mesh.devices.shape)
    other = Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
    return dataclasses.replace(executor, mesh=other)


def main() -> None:
    out, where, *layouts = sys.argv[1:]
    initialize(where)
    for layout in layouts:
        kind, sizes = layout.split(":")
        data, fsdp = map(int, sizes.split("x"))
        directory = Path(out) / layout
        executor = make_executor(kind.removeprefix(TURNED), data=data, fsdp=fsdp)
        if kind.startswith(TURNED):
            executor = turned(executor)
        found = everything(executor, directory)
        if is_primary():
            np.savez(f"{directory}.npz", **found)


if __name__ == "__main__":
    main()
