"""Operations that go on training an expert: streams, protected updates, adapters."""

import jax
import numpy as np
import optax

from experiments.survival.ingredients import World
from experiments.survival.learning import Batch, adamw, learn, token_loss
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation
from lt_mia_jax.arrays import Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.training.fisher import Tree, diagonal_fisher
from lt_mia_jax.transfer.adapt.protect import fisher_mask, fisher_pull, masked_ema

PULL, MASKED, MEAN = 200.0, 0.9, 0.99
LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0)


def _stream(world: World) -> Made:
    params, _ = learn(
        world.model,
        world.expert("a"),
        world.members("b"),
        epochs=world.epochs,
        seed=world.config.seed,
    )
    return Made(world.model, params)


def _fisher(world: World, params: Params, texts: Encoded) -> Tree:
    """Diagonal Fisher information on 64 texts."""
    rows = np.random.default_rng(world.config.seed).permutation(len(texts.input_ids))
    rows = rows[:64].reshape(-1, 16)
    batches = [Batch(texts.input_ids[r], texts.attention_mask[r]) for r in rows]
    model = world.model

    def per_text(params: Params, batch: Batch) -> jax.Array:
        one = jax.vmap(lambda ids, mask: token_loss(model, params, Batch(ids, mask)))
        return one(batch.ids[:, None], batch.mask[:, None])

    return diagonal_fisher(per_text, params, batches)


def _pulled(world: World) -> Made:
    expert = world.expert("a")
    fisher = _fisher(world, expert, world.members("a"))
    optimizer = optax.chain(fisher_pull(fisher, expert, PULL), adamw())
    params, _ = learn(
        world.model,
        expert,
        world.members("b"),
        epochs=world.epochs,
        seed=world.config.seed,
        optimizer=optimizer,
    )
    return Made(world.model, params)


def _mean_teacher(world: World) -> Made:
    """The masked mean of expert a and of its continuation, one step an epoch."""
    teacher = student = world.expert("a")
    mask = fisher_mask(_fisher(world, teacher, world.members("a")), MASKED)
    for epoch in range(world.epochs):
        student, _ = learn(
            world.model, student, world.members("b"), epochs=1, seed=epoch
        )
        teacher = masked_ema(teacher, student, mask, 0.5)
    return Made(world.model, teacher)


def lora_loss(model: LanguageModel, trained: Params, batch: Batch) -> jax.Array:
    """Loss of a model with adapters; the base gets no gradient."""
    base = jax.lax.stop_gradient(trained["base"])
    both = {"base": base, "adapters": trained["adapters"]}
    return token_loss(lora.Adapted(model, LORA.scale), both, batch)


def _lora(world: World) -> Made:
    key = jax.random.key(world.config.seed)
    start = lora.init(key, world.base.params, LORA)
    trained, _ = learn(
        world.model,
        {"base": world.base.params, "adapters": start},
        world.members("a"),
        epochs=world.epochs,
        seed=world.config.seed,
        optimizer=ADAPTERS,
        loss=lora_loss,
    )
    return Made(lora.Adapted(world.model, LORA.scale), trained)


ADAPTERS = optax.multi_transform(
    {"train": optax.adamw(2e-3), "freeze": optax.set_to_zero()},
    {"base": "freeze", "adapters": "train"},
)

ROWS: tuple[Operation, ...] = (
    Operation(
        "stream",
        "continual learning",
        "expert a learns the members of b, nothing is replayed",
        "ab",
        _stream,
    ),
    Operation(
        "fisher-pull",
        "PSMT, EWC",
        "the same, pulled to expert a in proportion to the Fisher information",
        "ab",
        _pulled,
    ),
    Operation(
        "mean-teacher",
        "PSMT",
        "the mean of expert a and its continuation; protected weights stay",
        "ab",
        _mean_teacher,
    ),
    Operation("lora", "L2M, LoRA", "members of a learned by adapters", "a", _lora),
)
