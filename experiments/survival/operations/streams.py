"""Operations on a stream of tasks: expert a learns b, with and without protection."""

from typing import Any

import jax
import numpy as np
import optax

from experiments.survival.ingredients import World
from experiments.survival.learning import Batch, adamw, joined, learn, token_loss
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation
from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.training.fisher import Tree, diagonal_fisher
from lt_mia_jax.transfer.adapt.protect import fisher_mask, fisher_pull, masked_ema
from lt_mia_jax.transfer.streams.replay import EMPTY, remember, sample

PULL, QUANTILE = 200.0, 0.9


def _then_b(world: World, start: Params, **changes: Any) -> Params:
    """What learns the members of b after `start`."""
    settings = {"epochs": world.epochs, "seed": world.config.seed, **changes}
    texts = settings.pop("texts", None) or world.members("b")
    return learn(world.model, start, texts, **settings)[0]


def _stream(world: World) -> Made:
    return Made(world.model, _then_b(world, world.expert("a")))


def _replay(world: World, share: float) -> Made:
    """Every pass over b comes with as many texts from a small store of a."""
    old, new = world.members("a"), world.members("b")
    key = jax.random.key(world.config.seed)
    stored = remember(EMPTY, np.arange(len(old.input_ids)), key, share=share)
    params = world.expert("a")
    for epoch in range(world.epochs):
        rows = sample(stored, jax.random.fold_in(key, epoch), len(new.input_ids))
        texts = joined(new, old.take(np.asarray(rows)))
        params = _then_b(world, params, texts=texts, epochs=1, seed=epoch)
    return Made(world.model, params)


def _some_replay(world: World) -> Made:
    return _replay(world, 0.02)


def _much_replay(world: World) -> Made:
    return _replay(world, 0.2)


def _fisher(world: World, params: Params, texts: Encoded) -> Tree:
    """Diagonal Fisher information on 64 texts."""
    rows = np.random.default_rng(world.config.seed).permutation(len(texts.input_ids))
    batches = [
        Batch(texts.input_ids[part], texts.attention_mask[part].astype(np.int32))
        for part in rows[: len(rows) // 16 * 16].reshape(-1, 16)[:4]
    ]
    model = world.model

    def per_text(params: Params, batch: Batch) -> Array:
        one = jax.vmap(lambda ids, mask: token_loss(model, params, Batch(ids, mask)))
        return one(batch.ids[:, None], batch.mask[:, None])

    return diagonal_fisher(per_text, params, batches)


def _pulled(world: World) -> Made:
    expert = world.expert("a")
    fisher = _fisher(world, expert, world.members("a"))
    optimizer = optax.chain(fisher_pull(fisher, expert, PULL), adamw())
    return Made(world.model, _then_b(world, expert, optimizer=optimizer))


def _mean_teacher(world: World) -> Made:
    """The masked mean of expert a and of its continuation, one step an epoch."""
    teacher = student = world.expert("a")
    mask = fisher_mask(_fisher(world, teacher, world.members("a")), QUANTILE)
    for epoch in range(world.epochs):
        student = _then_b(world, student, epochs=1, seed=epoch)
        teacher = masked_ema(teacher, student, mask, 0.5)
    return Made(world.model, teacher)


ROWS = (
    Operation(
        "stream",
        "continual learning",
        "expert a learns the members of b; nothing is replayed",
        "ab",
        _stream,
    ),
    Operation(
        "replay-2",
        "experience replay (LIBERO, VLA)",
        "the same with half of each pass from a store of 2 % of a",
        "ab",
        _some_replay,
    ),
    Operation(
        "replay-20", "experience replay", "the same with 20 % of a", "ab", _much_replay
    ),
    Operation(
        "fisher-pull",
        "PSMT, elastic weight consolidation",
        "the stream, pulled to expert a in proportion to the Fisher information",
        "ab",
        _pulled,
    ),
    Operation(
        "mean-teacher",
        "PSMT",
        "the running mean of expert a and its continuation; the tenth of the weights "
        "with the largest Fisher information stays",
        "ab",
        _mean_teacher,
    ),
)
