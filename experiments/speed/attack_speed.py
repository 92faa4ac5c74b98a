"""Texts per second of training the attack, beside the same network in PyTorch.

python -m experiments.speed.attack_speed --batch-size 256 512

Both sides do a whole update: forward with dropout, backward, clipping, AdamW, with the
paper's network and the same texts in memory, of all lengths up to 128 steps and of 128
steps each. PyTorch pads every text; ours also puts short texts into common rows. They
take turns and the fastest pass counts, since other programs can only slow a pass down.

python -m experiments.speed.attack_speed --loader --features DIR...

times training on the given stores with the features kept in memory and read from the
store for every batch; a thread reads ahead, as in training.
"""

import dataclasses
import functools
import itertools
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.optimizer import make_optimizer
from lt_mia_jax.attacks.learned.packing import StepBatch, read_batch
from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.attacks.learned.train import TrainStep
from lt_mia_jax.data.batches import Batch, batch_indices
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.features import FeatureStore
from lt_mia_jax.process import exit_code, use_machine
from lt_mia_jax.training.loop import step_program
from lt_mia_jax.training.prefetch import Prefetcher
from lt_mia_jax.training.state import init_state


@dataclasses.dataclass(frozen=True)
class AttackSpeed:
    """Time training of the learned attack."""

    batch_size: tuple[int, ...] = (256,)
    """Texts in an update; --loader takes the first number."""

    rounds: int = 5
    """How often the two sides take turns."""

    threads: int = 2
    """Threads of PyTorch; our side takes every core that the process may use."""

    loader: bool = False
    """Compare features in memory with features read from the store instead."""

    features: tuple[Path, ...] = ()
    """Stores for --loader."""


class Texts:
    """A feature source of random numbers."""

    name = "random"

    def __init__(self, config: ClassifierConfig, n: int, *, full: bool) -> None:
        """Texts of all lengths, or as long as they can be."""
        rng = np.random.default_rng(0)
        self.meta: dict[str, Any] = {}
        self.n, self.ids, self.split = n, [str(i) for i in range(n)], ["train"] * n
        self.labels = [i % 2 for i in range(n)]
        shortest = config.length if full else 1
        self.n_steps = rng.integers(shortest, config.length + 1, n)
        self._mask = np.arange(config.length) < self.n_steps[:, None]
        shape = (n, config.length, config.inputs)
        self._features = rng.standard_normal(shape, np.float32) * self._mask[..., None]

    def features(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Features and mask of some texts."""
        return self._features[rows], self._mask[rows]


def updates(
    config: ClassifierConfig, recipe: TrainConfig, executor: Executor
) -> Callable[[StepBatch], None]:
    """A function that makes an update of a batch and waits for it."""
    params, constants = classifier.split_constants(
        classifier.init(config, jax.random.key(0))
    )
    start = functools.partial(init_state, optimizer=make_optimizer(recipe, 10))
    held = [executor.init_sharded(start, params)]
    step = jax.tree_util.Partial(
        TrainStep.of(config, recipe, 10, executor.axis), executor.place(constants)
    )
    advance = step_program(step, executor)
    key = executor.place(jax.random.key(1))

    def update(batch: StepBatch) -> None:
        held[0], metrics = advance(held[0], executor.place_batch(batch), key)
        jax.block_until_ready(metrics)

    return update


def ours(
    config: ClassifierConfig, recipe: TrainConfig, texts: Texts
) -> Callable[[], None]:
    """Reading a batch and an update."""
    executor = make_executor()
    update = updates(config, recipe, executor)
    rows = Rows([texts], "train", cache_bytes=1e12)
    every = Batch(np.arange(texts.n), np.ones(texts.n, np.float32))
    return lambda: update(read_batch(rows, every, executor, packed=True))


def theirs(
    config: ClassifierConfig, recipe: TrainConfig, texts: Texts, threads: int
) -> Callable[[], None]:
    """The same update by PyTorch's own layers."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = config.width
            self.project = nn.Linear(config.inputs, width)
            self.norm = nn.LayerNorm(width)
            layer = nn.TransformerEncoderLayer(
                width,
                config.heads,
                config.feed_forward,
                config.dropout,
                batch_first=True,
            )
            self.encoder = nn.TransformerEncoder(
                layer, config.layers, enable_nested_tensor=False
            )
            self.pool = nn.Sequential(
                nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 1)
            )
            self.head = nn.Sequential(
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(width, 1),
            )
            rates = torch.exp(-torch.arange(0, width, 2) * math.log(1e4) / width)
            angle = torch.arange(config.length)[:, None] * rates
            table = torch.stack([angle.sin(), angle.cos()], -1)
            self.table = table.reshape(config.length, width)

        def forward(self, x: Any, mask: Any) -> Any:
            x = self.norm(self.project(x)) + self.table
            x = self.encoder(x, src_key_padding_mask=~mask)
            score = self.pool(x)[..., 0].masked_fill(~mask, -math.inf)
            return self.head((score.softmax(1)[..., None] * x).sum(1))[:, 0]

    network = Network().train()
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )
    features, mask = map(torch.from_numpy, texts.features(np.arange(texts.n)))
    labels = torch.tensor(texts.labels, dtype=torch.float32)
    smooth = labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
    loss_of = nn.BCEWithLogitsLoss()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(network(features, mask), smooth).backward()
        clip = math.inf if recipe.clip_norm is None else recipe.clip_norm
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()

    return run


def beside_torch(config: AttackSpeed) -> None:
    """Print texts per second of both sides."""
    network, recipe = ClassifierConfig(), TrainConfig()
    print("| texts in an update | steps | PyTorch, texts/s | ours, texts/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for size, full in itertools.product(config.batch_size, (False, True)):
        texts = Texts(network, size, full=full)
        sides = {
            "torch": theirs(network, recipe, texts, config.threads),
            "ours": ours(network, recipe, texts),
        }
        best = dict.fromkeys(sides, math.inf)
        for turn in range(config.rounds + 1):
            for name, run in sides.items():
                began = time.perf_counter()
                run()
                if turn:  # the first one compiles
                    best[name] = min(best[name], time.perf_counter() - began)
        speed = {name: size / seconds for name, seconds in best.items()}
        ratio = speed["ours"] / speed["torch"]
        steps = f"{network.length}" if full else f"1 to {network.length}"
        print(
            f"| {size} | {steps} | {speed['torch']:.0f} | {speed['ours']:.0f} | "
            f"{ratio:.2f} |",
            flush=True,
        )


def loader(config: AttackSpeed) -> None:
    """Print the time of an update with features in memory and read from the store."""
    stores = [FeatureStore.open(path) for path in config.features]
    if not stores:
        raise InputError("--loader: no --features; give stores of `lt-mia extract`")

    executor = make_executor()
    held = {
        name: Rows(stores, "train", cache_bytes=size)
        for name, size in (("memory", 1e12), ("store", 0.0))
    }
    (rows, _) = held.values()
    shape = {"inputs": rows.columns, "length": rows.length}
    size = config.batch_size[0]
    batches = batch_indices(len(rows), size, seed=0, epochs=1)
    update = updates(ClassifierConfig(**shape), TrainConfig(), executor)

    def seconds(name: str) -> float:
        def batch_at(step: int) -> StepBatch:
            return read_batch(held[name], batches[step], executor, packed=True)

        # As in training: a thread reads ahead. Its start is part of the time.
        began = time.perf_counter()
        with Prefetcher(batch_at, len(batches)) as reader:
            for _ in range(len(batches)):
                update(next(reader))
        return (time.perf_counter() - began) / len(batches)

    seconds("memory")  # compiles
    found: dict[str, list[float]] = {name: [] for name in held}
    for turn in range(config.rounds):
        for name in held if turn % 2 else reversed(held):
            found[name].append(seconds(name))
    memory, store = (np.array(found[name]) for name in held)
    print(
        f"{len(batches)} updates of {size} texts, {config.rounds} rounds: "
        f"{1e3 * np.median(memory):.0f} ms an update from memory, "
        f"{1e3 * np.median(store):.0f} ms from the store (medians); ratio by round "
        f"{np.array2string(store / memory, precision=3, separator=', ')}, median "
        f"{np.median(store / memory):.3f}"
    )


def main() -> int:
    """Parse and measure."""
    logging.basicConfig(level=logging.WARNING)
    config = tyro.cli(AttackSpeed, description=__doc__)
    use_machine()
    work = loader if config.loader else beside_torch
    return exit_code(lambda: work(config), "attack_speed")


if __name__ == "__main__":
    sys.exit(main())
